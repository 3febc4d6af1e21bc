"""An experiment waits, and says so, while the director lacks room on its disk, open files or memory."""

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openfl_audio.director import intake, run, shortage, update_file
from openfl_audio.director.experiment import Experiment
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.director.scheduler import Scheduler
from openfl_audio.director.shortage import LACKS, describe_lack
from openfl_audio.director.tensorboard import TensorBoard
from openfl_audio.errors import LackError
from openfl_audio.files import Journal
from openfl_audio.protocol.codec import HistoryMessage, decode_history
from openfl_audio.protocol.tensors import Tensors
from tests.unit.director.toy_experiment import (
    MODEL,
    answer,
    assert_model,
    load,
    make_experiment,
    next_model,
    play,
    serve,
    until,
)

WRITES = {
    "the state": (RunFolder, "save_state"),
    "the history": (Journal, "append"),
    "a link to the best model": (RunFolder, "link_model"),
    "the curves": (TensorBoard, "add"),
    "the next model": (Scheduler, "_aggregate"),
    "an update": (intake, "write_update"),
    "a file for an update": (RunFolder, "take_update_file"),
    "the room for an update": (update_file, "reserve"),
    "old models": (RunFolder, "delete_old_models"),
}


@pytest.fixture(autouse=True)
def attempts_follow_soon(monkeypatch) -> None:
    for module in (run, shortage):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


async def persist(experiment: Experiment, envoy: str) -> None:
    """An envoy that is told to come again later, and does."""
    while not experiment.ended:
        try:
            await serve(experiment, envoy)
        except LackError:
            await asyncio.sleep(0.01)


def expected_model(rounds: int) -> Tensors:
    model = MODEL
    for round_number in range(rounds):
        model = next_model(model, "ab", round_number)
    return model


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE], ids=["a full disk", "too many open files"])
def test_whatever_cannot_be_written_for_a_while_is_written_later_and_counts_once(tmp_path, monkeypatch, write, number):
    experiment = make_experiment(tmp_path, rounds=2)
    owner, name = WRITES[write]
    whole, missing = getattr(owner, name), threading.Event()

    def lacking(*args, **kwargs):
        if missing.is_set():
            raise OSError(number, os.strerror(number))
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, lacking)
    said = []

    async def fill() -> None:
        await answer(experiment, "a")
        missing.set()
        b = asyncio.create_task(persist(experiment, "b"))
        await until(lambda: bool(experiment.lacks.first))
        said.append((experiment.state.status, experiment.view.summary().waits))
        await asyncio.sleep(0.05)
        missing.clear()
        await asyncio.gather(b, persist(experiment, "a"))

    play(experiment, fill())
    assert said[0][0] is Status.IN_PROGRESS
    assert said[0][1].startswith(LACKS[number])
    assert (experiment.state.status, experiment.state.error, experiment.lacks.first) == (Status.FINISHED, "", "")
    assert [record["round"] for record in experiment.folder.history] == [0, 1, 2]
    assert_model(experiment.folder.named_model("last"), expected_model(2))
    assert RunFolder.load(experiment.folder.path).state == experiment.state


def test_who_watches_hears_that_it_waits_and_that_it_resumes(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path, rounds=1)
    whole, attempts = Scheduler._aggregate, iter(range(3))

    def lacking(self: Scheduler, aggregations: int) -> None:
        if next(attempts, None) is not None:
            raise OSError(errno.ENOSPC, "full")
        whole(self, aggregations)

    monkeypatch.setattr(Scheduler, "_aggregate", lacking)

    async def watch() -> list[HistoryMessage]:
        return [decode_history(line) async for line in experiment.view.history()]

    *_, messages = play(experiment, persist(experiment, "a"), persist(experiment, "b"), watch())
    waits = [message.waits[:25] for message in messages[:2]]
    assert (waits, [message.round for message in messages[2:]]) == (["disk full on the director", ""], [0, 1])


def test_an_experiment_that_was_stopped_on_a_full_disk_stays_so_after_a_restart(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path)
    whole, missing = RunFolder.save_state, [True]

    def lacking(self: RunFolder) -> None:
        if missing:
            raise OSError(errno.ENOSPC, "full")
        whole(self)

    async def stop() -> None:
        await experiment.scheduler.wait_for_tasks("a")
        monkeypatch.setattr(RunFolder, "save_state", lacking)
        experiment.stop()
        assert RunFolder.load(experiment.folder.path).state.status is Status.IN_PROGRESS
        missing.clear()
        await until(lambda: RunFolder.load(experiment.folder.path).state.status is Status.STOPPED)

    play(experiment, stop())


def test_what_is_no_lack_is_none(tmp_path):
    assert describe_lack(FileNotFoundError(errno.ENOENT, "gone"), tmp_path) is None
    assert describe_lack(ValueError(errno.ENOSPC), tmp_path) is None
    assert describe_lack(MemoryError(), tmp_path) == LACKS[errno.ENOMEM]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Callable[[], None]:
    """Take all room there is. Returns what gives it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler.unlink


def test_a_disk_that_is_full_in_mid_round_is_waited_for(small_disk):
    experiment = make_experiment(small_disk, rounds=3)
    envoys = "ab"

    async def fill_and_empty() -> str:
        await answer(experiment, "a")
        empty = fill(small_disk)
        others = [asyncio.create_task(persist(experiment, envoy)) for envoy in envoys]
        await until(lambda: bool(experiment.lacks.first))
        said = experiment.lacks.first
        await asyncio.sleep(0.1)
        assert experiment.state.status is Status.IN_PROGRESS
        empty()
        await asyncio.gather(*others)
        return said

    assert play(experiment, fill_and_empty()) == ["disk full on the director, 0 MB free"]
    assert experiment.state.status is Status.FINISHED
    np_model = load(experiment.folder.named_model("last"))
    assert (np_model["weight"] == expected_model(3)["weight"]).all()
