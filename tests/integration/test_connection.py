"""An envoy whose connection breaks: the round completes by itself, and its result is that of an undisturbed one."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.testing.fault_proxy import Fault, Proxy
from tests.integration.conftest import ENVOYS, READY_SECONDS, USER, points, wait_for

pytestmark = pytest.mark.integration

SIDE = 1500  # 9 MB of weights: nine pieces, while everything else that crosses is some kilobytes
MIDDLE = SIDE * SIDE * 4 // 2
numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Callable]:
    started = []

    def start(port: int) -> Proxy:
        started.append(Proxy(port).__enter__())
        return started[-1]

    yield start
    for each in started:
        each.__exit__()


@pytest.fixture(scope="module")
def federation(tmp_path_factory, certificates, proxy) -> Iterator[tuple[LocalFederation, Proxy]]:
    """A director, envoy 'a' connected directly and envoy 'b' through the proxy."""
    with LocalFederation(tmp_path_factory.mktemp("connection"), certificates, USER) as processes:
        processes.start_director()
        between = proxy(processes.port)
        processes.start_envoy("a", points(ENVOYS["a"]))
        processes.start_envoy("b", points(ENVOYS["b"]), director_port=between.port)
        processes.wait_until_ready(ENVOYS, READY_SECONDS)
        yield processes, between


@pytest.fixture(scope="module")
def run(federation, connect) -> Callable:
    """Run an experiment of two rounds on a large model; its history and its last weights."""
    import torch
    import toy
    from toy.experiment import PointsData, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment, ModelInterface

    def build(side=SIDE):
        model = torch.nn.Linear(side, side, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.arange(side * side).reshape(side, side) % 977)
        return model

    def train(model, points, device, optimizer):
        """Every weight moves by an amount of its own, so that pieces in the wrong place would show."""
        with torch.no_grad():
            change = torch.arange(model.weight.numel(), device=device).reshape(model.weight.shape) % 1013
            model.weight.mul_(0.3).add_(change * len(points))
        return {"loss": 0.0}

    def validate(model, points, device):
        return {"accuracy": 0.0}

    def run():
        name = f"large-{next(numbers)}"
        experiment = FLExperiment(connect(federation[0]), name, workspace=toy)
        experiment.start(
            model_provider=ModelInterface(build, partial(torch.optim.SGD, lr=0.1)),
            task_keeper=task_interface(train, validate),
            data_loader=PointsData(),
            rounds_to_train=2,
        )
        client = experiment.federation.dir_client
        wait_for(lambda: client.get_experiment(name).status not in ("pending", "in_progress"), 90)
        return client.get_experiment(name), client.get_model(name, "last")

    return run


@pytest.fixture(scope="module")
def undisturbed(run) -> np.ndarray:
    _, model = run()
    return model["weight"]


def test_an_undisturbed_run_gives_the_mean_of_what_both_envoys_trained(undisturbed):
    every = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    weight, change = every % 977, every % 1013
    for _ in range(2):
        weight = (1 * (0.3 * weight + 1 * change) + 3 * (0.3 * weight + 3 * change)) / 4
    # float32 on the envoys against float64 here: 24 bits of weights up to some 4000
    np.testing.assert_allclose(undisturbed, weight, atol=1e-3)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", "up", MIDDLE),
        Fault("stall", "up", MIDDLE),
        Fault("reset", "up", MIDDLE),
        Fault("cut", "down", MIDDLE),
        Fault("stall", "down", MIDDLE),
        Fault("reset", "down", MIDDLE),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.direction}",
)
def test_a_round_completes_after_a_connection_broke_in_the_middle_of_a_model(run, federation, undisturbed, fault):
    _, proxy = federation
    proxy.arm(fault)
    experiment, model = run()
    assert proxy.broken.is_set(), "the connection broke"
    assert (experiment.status, experiment.error) == ("finished", "")
    for record in experiment.history:
        assert list(record.envoys) == ["a", "b"]
        assert (record.refused, record.missing) == ({}, [])
    # A stall is noticed after 15 s; gRPC by itself would take a minute.
    assert max(record.seconds for record in experiment.history) < 55
    np.testing.assert_array_equal(model["weight"], undisturbed)
