import gc
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import openfl_audio.simulation.virtual_clients
from openfl_audio.errors import SimulationError
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.tensors import Tensors
from openfl_audio.simulation.simulation import Simulation
from tests.unit import toy

pytestmark = pytest.mark.process

CLIENTS = ["a-4", "b-2", "c-7", "d-3", "e-5"]


def weights_of(simulation: Simulation) -> Tensors:
    return {name: tensor.numpy() for name, tensor in simulation.last_model().state_dict().items()}


def outcome(simulation: Simulation) -> tuple[Any, dict[str, bytes]]:
    """Return what must not differ between two runs, to the bit."""
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


def add_clips_but_fail_once(model, points, device, optimizer, round_number):
    result = add_clips(model, points, device, optimizer, round_number)
    if (round_number, points.client) == (1, "a-4"):
        model.line.bias.data.fill_(torch.nan)
    return result


def test_a_round_that_ends_in_nan_leaves_what_stays_with_the_client_as_it_was(tmp_path):
    simulation = toy.simulate(
        tmp_path, ["a-4", "b-2"], train=add_clips_but_fail_once, local_tensors=["line.bias"], rounds=4
    )
    biases = [record["envoys"]["a-4"]["train"]["bias"] for record in simulation.records[:-1]]
    assert biases == [-0.5 + 4 * times for times in (1, 2, 2, 3)]


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


@pytest.fixture
def fast_collection() -> Iterator[None]:
    """Leave what is there already, PyTorch above all, out of garbage collections."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("fast_collection")
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
        monkeypatch.setattr(openfl_audio.simulation.virtual_clients, "OPEN_CLIENTS", limit)
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


def assert_no_ray(ray: Any) -> None:
    assert not ray.is_initialized()
    deadline = time.monotonic() + 60
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
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    with pytest.raises(SimulationError, match=r"several workers need Ray: pip install 'openfl-audio\[simulation\]'"):
        toy.simulate(tmp_path, CLIENTS, workers=2)


def fit_until_the_third_round(model, points, device, optimizer, round_number):
    if (round_number, points.client) == (3, "b-2"):
        raise KeyError("no such clip")
    return toy.fit_noisily(model, points, device, optimizer, round_number)


@pytest.mark.integration
def test_two_workers_do_what_one_does_to_the_bit_and_after_a_fault_ray_is_gone(tmp_path, one_thread):
    ray = pytest.importorskip("ray")
    # Else a worker would have to import this module, as pytest does.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    outcomes = []
    try:
        for workers in (1, 2):
            simulation = Simulation(CLIENTS, toy.Points, tmp_path / str(workers), workers=workers)
            arguments = toy.arguments(
                rounds=5,
                train=fit_until_the_third_round,
                optimizer=toy.MOMENTUM,
                opt_treatment="CONTINUE_LOCAL",
                local_tensors=["line.bias"],
                data=Dealt,
            )
            simulation.start("toy", **arguments)
            with pytest.raises(SimulationError) as raised:
                list(simulation.run())
            if str(raised.value).startswith("Ray does not start"):
                pytest.skip(f"{raised.value}")  # it gives up where this takes too long
            assert str(raised.value) == "client 'b-2' in round 3: KeyError: 'no such clip'"
            outcomes.append(outcome(simulation))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert len(outcomes[0][0]) == 3
    assert outcomes[1] == outcomes[0]
    assert_no_ray(ray)


def test_a_cluster_that_is_not_there_is_named(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    simulation = Simulation(CLIENTS, toy.Points, tmp_path, workers=2, ray_address="auto")
    simulation.start("toy", **toy.arguments())
    with pytest.raises(SimulationError, match="Ray does not start: Could not find any running Ray instance"):
        next(simulation.run())
