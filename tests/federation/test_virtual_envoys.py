import gc
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import federation.virtual_envoys
from federation.participation import Participation
from federation.simulation import Simulation
from federation.tensors import Tensors
from federation.virtual_envoys import SimulationError
from tests.federation import toy

CLIENTS = ["a-4", "b-2", "c-7", "d-3", "e-5"]


def weights_of(simulation: Simulation) -> Tensors:
    return {name: tensor.numpy() for name, tensor in simulation.last_model().state_dict().items()}


def outcome(simulation: Simulation) -> tuple[Any, dict[str, bytes]]:
    """What must not differ between two runs, to the bit."""
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in simulation.records]
    return records, {name: tensor.tobytes() for name, tensor in weights_of(simulation).items()}


def add_clips(model, points, device, optimizer, round_number):
    """ "Training" whose result can be told without a computer: every weight grows by the number of clips."""
    with torch.no_grad():
        for parameter in (model.line.weight, model.line.bias):
            parameter.add_(len(points.x))
    return {"bias": model.line.bias.item()}


def see_bias(model, points, device):
    return {"accuracy": model.line.bias.item()}


def test_local_tensors_stay_with_each_client_and_go_on_from_round_to_round(tmp_path):
    simulation = toy.simulate(
        tmp_path, ["a-4", "b-2"], train=add_clips, validate=see_bias, local_tensors=["line.bias"], rounds=3
    )
    biases = [
        {client: said["aggregated_model_validate"]["accuracy"] for client, said in record["envoys"].items()}
        for record in simulation.records
    ]
    assert biases == [{"a-4": -0.5 + 4 * number, "b-2": -0.5 + 2 * number} for number in range(4)]
    mean = (4 * 4 + 2 * 2) / 6
    np.testing.assert_allclose(weights_of(simulation)["line.weight"], [[0.5 + 3 * mean, 0.25 + 3 * mean]], rtol=1e-6)
    assert weights_of(simulation)["line.bias"] == -0.5, "no client's own tensor is the experiment's"


def test_a_client_that_sits_out_finds_its_own_tensors_again(tmp_path):
    participation = Participation(count=2, seed=1)
    clients = ["a-1", "b-1", "c-1", "d-1"]
    simulation = toy.simulate(
        tmp_path, clients, train=add_clips, local_tensors=["line.bias"], rounds=6, participation=participation
    )
    turns = dict.fromkeys(clients, 0)
    waited = set()
    for record in simulation.records[:-1]:
        for client, said in record["envoys"].items():
            turns[client] += 1
            assert said["train"]["bias"] == -0.5 + turns[client]
        waited |= {client for client in turns.keys() - record["envoys"].keys() if turns[client]}
    assert len(waited) > 1, "one could not tell"


class DrawnHead(toy.Line):
    """A recipe that draws what stays on the nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.normal_(self.line.bias)


def test_what_a_recipe_draws_for_the_clients_is_the_same_in_every_run(tmp_path):
    local: dict[str, Any] = {"model": DrawnHead, "train": add_clips, "local_tensors": ["line.bias"], "rounds": 2}
    first, second = (toy.simulate(tmp_path / name, CLIENTS, **local) for name in ("first", "second"))
    assert outcome(first)[0] == outcome(second)[0]
    biases = [said["train"]["bias"] for said in first.records[1]["envoys"].values()]
    assert biases[1] - biases[0] == pytest.approx(2 * (2 - 4), abs=1e-5)


def test_clients_keep_the_state_of_two_rounds_and_no_more(tmp_path):
    toy.simulate(tmp_path, ["a-4"], opt_treatment="CONTINUE_LOCAL", optimizer=toy.MOMENTUM, rounds=5)
    assert sorted(path.name for path in (tmp_path / "clients" / "a-4").iterdir()) == ["3.pt", "4.pt"]


def test_where_nothing_stays_with_a_client_nothing_is_kept_of_it(tmp_path):
    toy.simulate(tmp_path, ["a-4"])
    assert not (tmp_path / "clients").exists()


class Dealt(toy.Data):
    """Draws half of the clips when it gets them, and remembers in lists of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    @property
    def shard_descriptor(self) -> toy.Points:
        return self._points

    @shard_descriptor.setter
    def shard_descriptor(self, points: toy.Points) -> None:
        self.seen.append(points.client)
        assert self.seen == [points.client], "lists of another client"
        half = torch.randperm(len(points.x))[: len(points.x) // 2].numpy()
        points.x, points.y = points.x[half], points.y[half]
        self._points = points


@pytest.mark.parametrize("others", [{}, {"opt_treatment": "CONTINUE_LOCAL", "optimizer": toy.MOMENTUM}])
def test_few_clients_are_open_at_a_time_and_that_changes_nothing(tmp_path, monkeypatch, others):
    open_now: weakref.WeakSet[toy.Points] = weakref.WeakSet()
    most, opened = 0, 0

    def open_shard(client: str) -> toy.Points:
        nonlocal most, opened
        points = toy.Points(client)
        open_now.add(points)
        gc.collect()
        most, opened = max(most, len(open_now)), opened + 1
        return points

    outcomes = []
    for limit in (64, 2):
        monkeypatch.setattr(federation.virtual_envoys, "OPEN_CLIENTS", limit)
        most = opened = 0
        simulation = toy.simulate(
            tmp_path / str(limit), CLIENTS, open_shard, train=toy.fit_noisily, data=Dealt, rounds=3, **others
        )
        outcomes.append(outcome(simulation))
        assert opened == (5 if limit == 64 else 4 * 5)
        # The one that makes room for the new one goes once that is there.
        assert most <= limit + 1
        del simulation
        gc.collect()
        assert not open_now
    assert outcomes[0] == outcomes[1]


def test_of_ten_thousand_clients_only_those_are_opened_that_take_part(tmp_path):
    clients = [f"client{number}-2" for number in range(10_000)]
    participation = Participation(count=3)
    opened = []

    def open_shard(client: str) -> toy.Points:
        opened.append(client)
        return toy.Points(client)

    local: dict[str, Any] = {"opt_treatment": "CONTINUE_LOCAL", "optimizer": toy.MOMENTUM}
    simulation = toy.simulate(tmp_path, clients, open_shard, participation=participation, rounds=2, **local)
    took_part = {client for record in simulation.records for client in record["envoys"]}
    assert len(took_part) in range(3, 10)
    assert set(opened) == took_part
    assert {path.name for path in (tmp_path / "clients").iterdir()} <= took_part


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in an actor: with more, the sums of a matrix product may be in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_no_ray() -> None:
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    deadline = time.monotonic() + 20
    while names := [name for name in map(name_of, psutil.Process().children(recursive=True)) if is_rays(name)]:
        assert time.monotonic() < deadline, names
        time.sleep(0.1)


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:4])
    except psutil.Error:  # it ended meanwhile
        return ""


def is_rays(name: str) -> bool:
    return "ray::" in name or "raylet" in name or "gcs_server" in name


def test_without_ray_several_workers_say_what_to_install(tmp_path, monkeypatch):
    # Import fails for a name that stands for None.
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SimulationError, match=r"several workers need Ray: pip install 'openfl-audio\[simulation\]'"):
        toy.simulate(tmp_path, CLIENTS, workers=2)


@pytest.mark.integration
def test_two_workers_give_what_one_gives_to_the_bit(tmp_path, one_thread):
    pytest.importorskip("ray")
    others: dict[str, Any] = {
        "train": toy.fit_noisily,
        "optimizer": toy.MOMENTUM,
        "opt_treatment": "CONTINUE_LOCAL",
        "local_tensors": ["line.bias"],
        "data": Dealt,
    }
    one, two = (toy.simulate(tmp_path / str(n), CLIENTS, workers=n, **others) for n in (1, 2))
    assert outcome(two) == outcome(one)
    assert_no_ray()
    before = len(psutil.Process().children(recursive=True))
    again = toy.simulate(tmp_path / "2", CLIENTS, workers=2, **others)
    assert outcome(again) == outcome(one)
    assert len(psutil.Process().children(recursive=True)) == before, "it had nothing to run"


def fit_and_fail(model, points, device, optimizer, round_number):
    if points.client == "b-2":
        raise KeyError("no such clip")
    return toy.fit(model, points, device, optimizer, round_number)


def fit_and_die(model, points, device, optimizer, round_number):
    if points.client == "b-2":
        os._exit(1)
    return toy.fit(model, points, device, optimizer, round_number)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (fit_and_fail, r"^client 'b-2' in round 0: KeyError\('no such clip'\)$"),
        (fit_and_die, r"^client 'b-2' in round 0: .*ActorDiedError"),
    ],
)
def test_a_fault_in_a_worker_names_the_client_and_ray_is_gone(tmp_path: Path, train, sentence: str):
    ray = pytest.importorskip("ray")
    import sys

    # Else a worker would have to import this module, as pytest does.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with pytest.raises(SimulationError, match=sentence):
            toy.simulate(tmp_path, CLIENTS, workers=2, train=train)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert_no_ray()
