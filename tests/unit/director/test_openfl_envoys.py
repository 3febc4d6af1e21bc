import asyncio

import numpy as np
import pytest
from openfl.protocols import base_pb2
from openfl.protocols.aggregator_pb2 import TaskResults

from openfl_audio.director.experiment import Experiment
from openfl_audio.director.openfl_envoys import receive_results
from openfl_audio.errors import UpdateRefusedError
from openfl_audio.protocol.tensors import Tensors
from tests.unit.director.toy_experiment import (
    CLIPS,
    MODEL,
    TRAIN,
    VALIDATE,
    assert_model,
    make_experiment,
    next_model,
    play,
    running,
    serve,
    train,
    until,
)


def results(
    task: str, round_number: int = 0, metrics: dict[str, float] | None = None, tensors: Tensors | None = None
) -> TaskResults:
    """Return results of envoy 'a', as OpenFL's pipeline without compression lays them out."""
    message = TaskResults(round_number=round_number, task_name=task, data_size=CLIPS["a"])
    arrays = [("metric", name, np.array([value])) for name, value in (metrics or {}).items()]
    arrays += [("trained", name, value) for name, value in (tensors or {}).items()]
    for tag, name, value in arrays:
        tensor = base_pb2.NamedTensor(name=name, tags=[tag], data_bytes=value.astype(np.float32).tobytes())
        tensor.transformer_metadata.add(int_list=value.shape)
        message.tensors.append(tensor)
    return message


SCORE = results(VALIDATE.name, metrics={"score": 0.5})


def test_the_results_of_all_tasks_are_an_update(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def stock() -> None:
        await experiment.scheduler.wait_for_tasks("a")
        await receive_results(experiment, "a", SCORE)
        assert experiment.folder.updates() == []
        await receive_results(experiment, "a", results(TRAIN.name, tensors=train("a", 0, MODEL)))
        assert experiment.intake.partial_updates == {}
        await until(lambda: experiment.rounds.round_number == 1)
        await receive_results(experiment, "a", results(VALIDATE.name, 1, {"score": 0.75}))

    play(experiment, stock(), serve(experiment, "b"))
    assert experiment.folder.history[0]["envoys"]["a"] == {
        "aggregated_model_validate": {"size": 3, "score": 0.5},
        "train": {"size": 3},
    }
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


@pytest.mark.parametrize(
    ("task", "round_number", "sentence"),
    [
        ("guess", 0, r"has results of 'guess', round 0 asks for \['aggregated_model_validate', 'train'\] from it"),
        ("train", 1, r"has results of 'train', round 0 asks for"),
    ],
)
def test_results_that_nobody_asked_for_are_refused_and_not_kept(tmp_path, task, round_number, sentence):
    async def stock(experiment: Experiment) -> None:
        async with running(experiment):
            await experiment.scheduler.wait_for_tasks("a")
            with pytest.raises(UpdateRefusedError, match=f"^update of envoy 'a' for round {round_number}: {sentence}"):
                await receive_results(experiment, "a", results(task, round_number))
            assert experiment.intake.partial_updates == {}
            assert list(experiment.rounds.refused) == ["a"] * (round_number == 0)

    asyncio.run(stock(make_experiment(tmp_path)))


def test_results_that_come_late_are_dropped(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"deadline_seconds": 0.1})

    async def stock() -> None:
        await until(lambda: experiment.rounds.round_number == 1)
        await receive_results(experiment, "a", results(TRAIN.name))
        assert experiment.intake.partial_updates == {}

    play(experiment, stock(), serve(experiment, "b"))


def test_what_is_no_whole_update_is_forgotten_at_the_end_of_the_round(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"deadline_seconds": 0.1})

    async def stock() -> None:
        await experiment.scheduler.wait_for_tasks("a")
        await receive_results(experiment, "a", SCORE)
        assert list(experiment.intake.partial_updates) == ["a"]
        await until(lambda: experiment.rounds.round_number == 1)
        assert experiment.intake.partial_updates == {}

    play(experiment, stock(), serve(experiment, "b"))


def test_what_is_no_whole_update_is_forgotten_at_the_end_of_the_experiment(tmp_path):
    experiment = make_experiment(tmp_path)

    async def stock() -> None:
        await experiment.scheduler.wait_for_tasks("a")
        await receive_results(experiment, "a", SCORE)
        experiment.stop()
        await until(lambda: experiment.intake.partial_updates == {})

    play(experiment, stock())
