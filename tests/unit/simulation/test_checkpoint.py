import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import openfl_audio.simulation.checkpoint
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.tensors import TensorFile, write_tensors
from openfl_audio.simulation.simulation import Simulation
from tests.unit import toy

pytestmark = pytest.mark.process

KINDS = list(toy.LASTING)


def prepared(kind: str, folder: Path, **others: Any) -> Simulation:
    simulation = Simulation(toy.LASTING_CLIENTS, toy.Points, folder)
    simulation.start("toy", **toy.arguments(**{"rounds": toy.LASTING_ROUNDS} | toy.LASTING[kind] | others))
    return simulation


def run(simulation: Simulation, rounds: int | None = None) -> Simulation:
    """All rounds, or a few: the rest is abandoned."""
    for number, _ in enumerate(simulation.run(), start=1):
        if number == rounds:
            break
    return simulation


def outcome(simulation: Simulation) -> tuple[Any, dict[str, bytes]]:
    """Return what must not differ between two runs, to the bit."""
    lines = (simulation.folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == simulation.records
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in simulation.records]
    models = {"last": simulation.last_model(), "best": simulation.best_model()}
    weights = {
        f"{which}.{name}": tensor.numpy().tobytes()
        for which, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    return records, weights


@pytest.fixture(scope="module", params=KINDS)
def undisturbed(request, tmp_path_factory) -> tuple[str, Any]:
    """A kind of experiment, and its outcome."""
    return request.param, outcome(run(prepared(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture(params=[0.0, 1e9], ids=["saves every round", "saves at the end"])
def seconds_between(request, monkeypatch) -> float:
    monkeypatch.setattr(openfl_audio.simulation.checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", request.param)
    return request.param


@pytest.fixture(scope="module")
def start_process() -> Iterator[Callable[..., multiprocessing.Process]]:
    """Starts `toy.simulate_lasting` in a process that has loaded everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.toy"])
    started = []

    def start(*arguments: Any) -> multiprocessing.Process:
        process = context.Process(target=toy.simulate_lasting, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_for(condition: Callable[[], Any], process: multiprocessing.Process) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.exitcode is None, f"it ended by itself: {process.exitcode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_in_the_middle_of_a_round_it_goes_on_to_the_same_result(
    tmp_path, undisturbed, seconds_between, start_process
):
    kind, expected = undisturbed
    # In the fourth round, when one client has answered: its own state is there already.
    record = expected[0][3]
    waits = tmp_path / "waits"
    process = start_process(kind, tmp_path, seconds_between, (3, list(record["envoys"])[1], waits))
    wait_for(waits.exists, process)
    process.kill()
    process.join()
    waits.unlink()
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3
    simulation = prepared(kind, tmp_path)
    # What stays with the clients is saved every round.
    assert len(simulation.records) == (3 if kind == "clients" or not seconds_between else 0)
    assert outcome(run(simulation)) == expected


def test_killed_at_any_moment_several_times_it_goes_on_to_the_same_result(tmp_path, undisturbed, start_process):
    kind, expected = undisturbed
    history = tmp_path / "history.jsonl"
    for rounds in (1, 2, 4):
        process = start_process(kind, tmp_path, 0.0)
        wait_for(lambda n=rounds: history.exists() and history.read_text().count("\n") >= n, process)
        process.kill()
        process.join()
    simulation = prepared(kind, tmp_path)
    assert len(simulation.records) >= 3
    assert outcome(run(simulation)) == expected


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_run_that_was_abandoned_goes_on_in_a_new_simulation_or_the_same(
    tmp_path, undisturbed, seconds_between, rounds
):
    kind, expected = undisturbed
    simulation = run(prepared(kind, tmp_path), rounds)
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert outcome(run(simulation)) == expected
    again = prepared(kind, tmp_path / "copy")
    assert len(again.records) == (rounds if kind == "clients" or not seconds_between else 0)
    assert outcome(run(again)) == expected


def test_a_run_that_was_interrupted_while_it_saved_goes_on_in_the_same_simulation(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(openfl_audio.simulation.checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    kind, expected = undisturbed
    simulation = run(prepared(kind, tmp_path), 3)
    # No file can be made of that name.
    obstacle = tmp_path / ".checkpoint.safetensors.partial"
    obstacle.mkdir()
    with pytest.raises(IsADirectoryError):
        run(simulation)
    obstacle.rmdir()
    assert len(simulation.records) == 3
    assert outcome(run(simulation)) == expected


def test_a_finished_run_is_not_run_again(tmp_path, undisturbed):
    kind, expected = undisturbed
    run(prepared(kind, tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/*.*") if path.name != "history.jsonl"}

    def open_shard(client: str) -> toy.Points:
        raise AssertionError(f"{client} was opened")

    built: list[toy.Line] = []

    def build() -> toy.Line:
        built.append(toy.Line())
        return built[-1]

    again = Simulation(toy.LASTING_CLIENTS, open_shard, tmp_path)
    again.start("toy", **toy.arguments(rounds=toy.LASTING_ROUNDS, model=build, **toy.LASTING[kind]))
    assert list(again.run()) == []
    assert len(built) == 1, "the first model, and none for clients"
    assert outcome(again) == expected
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_history_that_is_longer_than_the_checkpoint_is_cut(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(openfl_audio.simulation.checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    kind, expected = undisturbed
    run(prepared(kind, tmp_path), 2)
    earlier = (tmp_path / "checkpoint.safetensors").read_bytes()
    run(prepared(kind, tmp_path), 1)
    (tmp_path / "checkpoint.safetensors").write_bytes(earlier)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3
    simulation = prepared(kind, tmp_path)
    assert len(simulation.records) == 2
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
    assert outcome(run(simulation)) == expected


def test_half_a_last_line_of_the_history_is_cut(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(openfl_audio.simulation.checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    kind, expected = undisturbed
    run(prepared(kind, tmp_path), 3)
    with (tmp_path / "history.jsonl").open("a") as history:
        history.write('{"round": 3, "best": tr')
    # And what a kill leaves of other files.
    for name in ("checkpoint.partial", "history.partial", "experiment.partial"):
        (tmp_path / name).write_bytes(b"half")
    simulation = prepared(kind, tmp_path)
    assert len(simulation.records) == 3
    assert outcome(run(simulation)) == expected


def test_kept_models_are_those_of_an_undisturbed_run(tmp_path, undisturbed):
    kind, _ = undisturbed
    run(prepared(kind, tmp_path / "whole", keep=2))
    run(prepared(kind, tmp_path / "parts", keep=2), 3)
    run(prepared(kind, tmp_path / "parts", keep=2))
    whole, parts = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("round-*")} for name in ("whole", "parts")
    )
    assert len(whole) == 2
    assert parts == whole


def test_patience_remembers_the_validations_before(tmp_path, monkeypatch):
    monkeypatch.setattr(openfl_audio.simulation.checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def measure(model, points, device):
        return {"accuracy": 0.5}

    def prepare(folder: Path) -> Simulation:
        return prepared("server", folder, validate=measure, patience=3)

    whole = run(prepare(tmp_path / "whole"))
    assert len(whole.records) == 4
    run(prepare(tmp_path / "parts"), 2)
    parts = run(prepare(tmp_path / "parts"))
    assert outcome(parts) == outcome(whole)
    assert [record["best"] for record in parts.records] == [True, False, False, False]


class LaterLine(toy.Line):
    def __init__(self) -> None:
        super().__init__()
        self.seen += 1


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rounds": ({"rounds": 7}, "rounds 6, now it is 7"),
    "optimizer": ({"opt_treatment": "RESET"}, "opt_treatment 'CONTINUE_LOCAL', now it is 'RESET'"),
    "local tensors": ({"local_tensors": []}, r"local_tensors \['line.bias'\], now it is \[\]"),
    "participation": ({"participation": Participation(seed=1)}, "participation.seed 0, now it is 1"),
    "tasks": ({"train": toy.fit_noisily}, r"tasks \[.*'fit'.*, now it is \[.*'fit_noisily'"),
    "precision": ({"precision": "float16"}, "precision 'float32', now it is 'float16'"),
    "members": ({"envoys": ["a-4"]}, r"envoys \['a-4', 'b-2', 'c-7'\], now it is \['a-4'\]"),
    "first model": ({"model": LaterLine}, "first_model '[0-9a-f]{64}', now it is '[0-9a-f]{64}'"),
}


@pytest.mark.parametrize("key", OTHERS)
def test_the_folder_of_another_experiment_is_refused(tmp_path, key):
    run(prepared("clients", tmp_path), 2)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    changes, sentence = OTHERS[key]
    with pytest.raises(ValueError, match=f"has an experiment with {sentence}.*: give another folder"):
        run(prepared("clients", tmp_path, **changes))
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def set_progress(path: Path, **changes: Any) -> None:
    with TensorFile(path) as file:
        tensors, metadata = file.load(), file.header.metadata
    write_tensors(path, tensors, metadata | changes)


def test_a_key_of_another_version_in_the_checkpoint_is_kept_and_named(tmp_path, caplog):
    path = tmp_path / "checkpoint.safetensors"
    run(prepared("clients", tmp_path), 1)
    set_progress(path, color="blue")
    simulation = prepared("clients", tmp_path)
    assert f"{path}: unknown keys ['color'] are kept" in caplog.text
    run(simulation)
    with TensorFile(path) as file:
        assert file.header.metadata["color"] == "blue"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: os.truncate(path, 100), "checkpoint.safetensors cannot be used: .*: give another folder"),
        (
            lambda path: set_progress(path, round_number="soon"),
            "cannot be used: round_number is 'soon'.*: give another",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path, spoil, sentence):
    run(prepared("clients", tmp_path), 1)
    spoil(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=sentence):
        prepared("clients", tmp_path)


def test_the_folder_of_other_clients_is_refused(tmp_path):
    run(prepared("server", tmp_path), 2)
    simulation = Simulation([*toy.LASTING_CLIENTS, "d-4"], toy.Points, tmp_path)
    with pytest.raises(ValueError, match=r"has an experiment with envoys \['a-4', 'b-2', 'c-7'\], now it is \['a-4'"):
        simulation.start("toy", **toy.arguments(rounds=toy.LASTING_ROUNDS, **toy.LASTING["server"]))
