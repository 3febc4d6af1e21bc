import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openfl_audio.director.experiment import Experiment
from openfl_audio.director.run import Phase
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.protocol.messages import UpdateMessage
from openfl_audio.protocol.tensors import Header, TensorFile, stream, write_tensors
from tests.unit.director.toy_experiment import (
    MODEL,
    answer,
    global_model,
    make_experiment,
    play,
    results_of,
    running,
    serve,
    train,
    until,
)

COUNT_TWO = {"count": 2, "seed": 4}


def final_model(tmp_path: Path, **plan: Any) -> bytes:
    """Return the final model of an experiment of four envoys that nothing disturbs."""
    experiment = make_experiment(tmp_path, name="undisturbed", members="abcd", **plan)
    play(experiment, *[serve(experiment, envoy) for envoy in "abcd"])
    return experiment.folder.named_model("last").read_bytes()


async def answer_first(experiment: Experiment, round_number: int) -> str:
    """Serve until in `round_number` the first of those asked has answered. Returns its name."""
    while experiment.rounds.round_number < round_number or experiment.phase is not Phase.OPEN:
        for envoy in list(experiment.rounds.participants):
            if experiment.rounds.round_number < round_number and experiment.rounds.tasks_for(envoy):
                await answer(experiment, envoy)
        await asyncio.sleep(0.001)
    first = next(iter(experiment.rounds.participants))
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
            return first, list(experiment.rounds.participants)

    first, asked = asyncio.run(until_killed())
    assert experiment.state.status is Status.IN_PROGRESS

    again = Experiment(RunFolder.load(experiment.folder.path), experiment.record, lambda _: True)
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
    again = Experiment(RunFolder.load(experiment.folder.path), experiment.record, lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[0]["envoys"]) == ["c", "d"]


def test_after_a_restart_an_envoy_that_left_is_not_asked_again(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 1000})

    async def until_killed() -> None:
        async with running(experiment):
            await answer_first(experiment, round_number=0)
            experiment.scheduler.depart("b", "out of memory")

    asyncio.run(until_killed())
    again = Experiment(RunFolder.load(experiment.folder.path), experiment.record, lambda _: True)
    assert again.state.departed == {"b": "out of memory"}
    play(again, serve(again, "a"), serve(again, "c"))
    assert [record["missing"] for record in again.folder.history] == [[], []]


@pytest.mark.parametrize("spoil", ["cut short", "of another round", "of a stranger", "other bytes"])
def test_after_a_restart_a_file_that_is_no_update_of_this_round_is_left_out(tmp_path, spoil):
    expected = final_model(tmp_path, rounds=1)
    experiment = make_experiment(tmp_path, rounds=1, members="abcd")

    async def until_killed() -> Path:
        async with running(experiment):
            await answer_first(experiment, round_number=0)
            [counted] = experiment.intake.contributions()
            return counted.path

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
    again = Experiment(RunFolder.load(experiment.folder.path), experiment.record, lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[0]["envoys"]) == list("abcd")
    assert again.folder.named_model("last").read_bytes() == expected


def test_after_a_kill_the_file_of_an_old_update_counts_neither_as_that_nor_as_the_one_half_written_over_it(
    tmp_path, monkeypatch
):
    # Large enough for its first half to leave the process at once.
    monkeypatch.setitem(MODEL, "weight", np.linspace(-1, 1, 1 << 14, dtype=np.float32).reshape(128, 128))
    expected = final_model(tmp_path, rounds=2)
    experiment = make_experiment(tmp_path, rounds=2, members="abcd")
    killed = tmp_path / "killed"

    async def until_killed() -> None:
        async with running(experiment):
            first = await answer_first(experiment, round_number=1)
            free = set(experiment.folder._free_updates)
            whole = min(path.stat().st_size for path in free)
            late = next(envoy for envoy in "abcd" if envoy != first)
            uploading = asyncio.create_task(upload_half(experiment, late, killed))
            await until(killed.exists)
            [old] = free - experiment.folder._free_updates
            # There is room for all of the new update from the beginning: its length does not tell that half is missing.
            assert (killed / "updates" / old.name).stat().st_size >= whole
            uploading.cancel()

    asyncio.run(until_killed())
    again = Experiment(RunFolder.load(killed), experiment.record, lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[1]["envoys"]) == list("abcd")
    assert again.folder.named_model("last").read_bytes() == expected


async def upload_half(experiment: Experiment, envoy: str, copy: Path) -> None:
    """Send the first half of the envoy's update, copy the experiment's folder as it then is, and send nothing more."""
    tasks, round_number = await experiment.scheduler.wait_for_tasks(envoy)
    model, _ = global_model(experiment)
    update = UpdateMessage(
        experiment=experiment.plan.name, envoy=envoy, round=round_number, results=results_of(envoy, tasks, model)
    )
    header, *pieces = stream(train(envoy, round_number, model), update.model_dump())
    data = b"".join(pieces)

    async def half() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        shutil.copytree(experiment.folder.path, copy)
        await asyncio.Event().wait()

    await experiment.intake.receive(update, Header.unpack(header), half())


def test_the_archive_stays_until_the_state_says_that_the_experiment_has_finished(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path, rounds=1, members="a")
    experiment.folder.archive.write_bytes(b"code")

    def fail() -> None:
        raise PermissionError(13, "no")

    with monkeypatch.context() as patched:
        patched.setattr(experiment.folder, "save_state", fail)
        experiment.end(Status.FINISHED)
    assert experiment.folder.archive.exists()
    experiment.save_soon()
    assert not experiment.folder.archive.exists()
