import asyncio
from pathlib import Path
from typing import Any

import pytest

from openfl_audio.director.experiment import Experiment
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.protocol.tensors import TensorFile, write_tensors
from tests.unit.director.toy_experiment import (
    answer,
    make_experiment,
    play,
    running,
    serve,
)

COUNT_TWO = {"count": 2, "seed": 4}


def final_model(tmp_path: Path, **plan: Any) -> bytes:
    """Of an experiment of four envoys that nobody disturbs."""
    experiment = make_experiment(tmp_path, name="undisturbed", members="abcd", **plan)
    play(experiment, *[serve(experiment, envoy) for envoy in "abcd"])
    return experiment.folder.named_model("last").read_bytes()


async def answer_first(experiment: Experiment, round_number: int) -> str:
    """Serve until in `round_number` the first of those asked has answered. Returns its name."""
    while experiment.rounds.round_number < round_number or not experiment._accepts_updates:
        for envoy in list(experiment.rounds.asked):
            if experiment.rounds.round_number < round_number and experiment.rounds.tasks_for(envoy):
                await answer(experiment, envoy)
        await asyncio.sleep(0.001)
    first = next(iter(experiment.rounds.asked))
    await answer(experiment, first)
    return first


@pytest.mark.parametrize(
    "plan",
    [
        {"participation": COUNT_TWO},
        {"aggregation": {"server_optimizer": {"optimizer": "adam"}}},
        {"participation": COUNT_TWO, "precision": "float16"},
    ],
    ids=["two of four", "with a server optimizer", "in float16"],
)
def test_after_a_restart_in_mid_round_the_same_envoys_make_the_same_model_to_the_bit(tmp_path, plan):
    expected = final_model(tmp_path, rounds=3, **plan)
    experiment = make_experiment(tmp_path, rounds=3, members="abcd", **plan)

    async def until_killed() -> tuple[str, list[str]]:
        async with running(experiment):
            first = await answer_first(experiment, round_number=1)
            return first, list(experiment.rounds.asked)

    first, asked = asyncio.run(until_killed())
    assert experiment.state.status is Status.IN_PROGRESS

    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    done = dict(zip("abcd", play(again, *[serve(again, envoy) for envoy in "abcd"]), strict=True))
    assert again.state.status is Status.FINISHED
    assert sorted(envoy for envoy in done if 1 in done[envoy]) == [envoy for envoy in asked if envoy != first]
    assert sorted(again.folder.history[1]["envoys"]) == asked
    assert [record["round"] for record in again.folder.history] == [0, 1, 2, 3]
    assert again.folder.named_model("last").read_bytes() == expected


def test_after_a_restart_a_draw_among_those_who_were_there_stays_although_others_are_there_now(tmp_path):
    participation = {"count": 2, "seed": 1, "deadline_seconds": 1000}
    experiment = make_experiment(
        tmp_path, rounds=1, members="abcd", participation=participation, is_online=lambda envoy: envoy in "cd"
    )

    async def until_killed() -> None:
        async with running(experiment):
            await answer_first(experiment, round_number=0)

    asyncio.run(until_killed())
    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[0]["envoys"]) == ["c", "d"]


def test_after_a_restart_an_envoy_that_left_is_not_asked_again(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 1000})

    async def until_killed() -> None:
        async with running(experiment):
            await answer_first(experiment, round_number=0)
            experiment.leave("b", "out of memory")

    asyncio.run(until_killed())
    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    assert again.state.left == {"b": "out of memory"}
    play(again, serve(again, "a"), serve(again, "c"))
    assert [record["missing"] for record in again.folder.history] == [[], []]


@pytest.mark.parametrize("spoil", ["cut short", "of another round", "of a stranger", "other bytes"])
def test_after_a_restart_a_file_that_is_no_update_of_this_round_is_left_out(tmp_path, spoil):
    expected = final_model(tmp_path, rounds=1)
    experiment = make_experiment(tmp_path, rounds=1, members="abcd")

    async def until_killed() -> Path:
        async with running(experiment):
            return experiment._updates[await answer_first(experiment, round_number=0)][0]

    path = asyncio.run(until_killed())
    with TensorFile(path) as file:
        tensors, metadata = file.load(), file.header.metadata
    if spoil == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif spoil == "of another round":
        write_tensors(path, tensors, metadata | {"round": 1})
    elif spoil == "of a stranger":
        write_tensors(path, tensors, metadata | {"envoy": "mallory"})
    else:
        path.write_bytes(b"hello")
    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[0]["envoys"]) == list("abcd")
    assert again.folder.named_model("last").read_bytes() == expected
