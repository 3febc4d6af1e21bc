"""An envoy whose connection breaks: every round completes by itself, and the result is that of an undisturbed run."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.testing.fault_proxy import Fault, Proxy
from tests.integration.conftest import ENVOYS, READY_SECONDS, USER, points, wait_for

pytestmark = pytest.mark.integration

SIDE = 1500  # 9 MB of weights: nine chunks, while everything else that crosses is some kilobytes
MIDDLE = SIDE * SIDE * 4 // 2
# Each on the connection that came after the one before broke. Models cross up and down by turns.
FAULTS = [Fault(kind, way, MIDDLE) for kind in ("cut", "stall", "reset") for way in ("up", "down")]
# Each fault is over at the latest in the round after the one before.
ROUNDS = len(FAULTS) + 1


@pytest.fixture
def federation(tmp_path, certificates) -> Iterator[tuple[LocalFederation, Proxy]]:
    """A director, envoy 'a' connected directly and envoy 'b' through the proxy."""
    processes = LocalFederation(tmp_path, certificates, USER)
    with Proxy(processes.port) as between, processes:
        processes.start_director()
        processes.start_envoy("a", points(ENVOYS["a"]))
        processes.start_envoy("b", points(ENVOYS["b"]), director_port=between.port)
        processes.wait_until_ready(ENVOYS, READY_SECONDS)
        yield processes, between


def test_rounds_complete_after_connections_broke_in_the_middle_of_a_model(federation, connect):
    import torch
    import toy
    from toy.experiment import PointsData, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment, ModelInterface

    processes, proxy = federation

    def build(side=SIDE):
        model = torch.nn.Linear(side, side, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.arange(side * side).reshape(side, side) % 977)
        return model

    def train(model, points, device, optimizer):
        """Every weight moves by an amount of its own, so that chunks in the wrong place would show."""
        with torch.no_grad():
            change = torch.arange(model.weight.numel(), device=device).reshape(model.weight.shape) % 1013
            model.weight.neg_().add_(change * len(points))
        return {"loss": 0.0}

    def validate(model, points, device):
        return {"accuracy": 0.0}

    experiment = FLExperiment(connect(processes), "large", workspace=toy)
    proxy.arm(FAULTS[0])
    experiment.start(
        model_provider=ModelInterface(build, partial(torch.optim.SGD, lr=0.1)),
        task_keeper=task_interface(train, validate),
        data_loader=PointsData(),
        rounds_to_train=ROUNDS,
    )
    client = experiment.federation.dir_client
    for fault, following in zip(FAULTS, [*FAULTS[1:], None], strict=True):
        wait_for(lambda: proxy.broken.is_set() or client.get_experiment("large").status == "failed", 100)
        assert proxy.broken.is_set(), f"{fault}: {client.get_experiment('large').error}"
        if following:
            proxy.arm(following)
    wait_for(lambda: client.get_experiment("large").status not in ("pending", "in_progress"), 100)

    ended = client.get_experiment("large")
    assert (ended.status, ended.error) == ("finished", "")
    assert [record.round for record in ended.history] == list(range(ROUNDS + 1))
    for record in ended.history:
        assert list(record.envoys) == ["a", "b"]
        assert (record.refused, record.missing) == ({}, [])
    # A stall is noticed after 15 s; gRPC by itself would take a minute. The first round has the workers' start in it.
    assert max(record.seconds for record in ended.history[1:]) < 55
    every = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    weight, change = every % 977, every % 1013
    for _ in range(ROUNDS):
        # Envoys with 1 and 3 points, which weigh as much.
        weight = (1 * (-weight + 1 * change) + 3 * (-weight + 3 * change)) / 4
    np.testing.assert_array_equal(client.get_model("large", "last")["weight"], weight)
