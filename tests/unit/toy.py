"""A line through points, as an experiment for `Simulation`. Importable, so that other processes find it too."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

import openfl_audio.simulation.checkpoint
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.server_optimizers import FedAdam
from openfl_audio.simulation.simulation import Simulation

RATE, STEPS = 0.05, 3
PLAIN = partial(torch.optim.SGD, lr=RATE)
MOMENTUM = partial(torch.optim.SGD, lr=RATE, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=RATE)


class Points(ShardDescriptor):
    """The clips of a client are points x (n, 2), y (n, 1); how many says its name: "a-7" has seven."""

    def __init__(self, client: str) -> None:
        self.client = client
        generator = np.random.default_rng(list(client.encode()))
        self.x = generator.normal(size=(int(client.split("-")[1]), 2)).astype(np.float32)
        self.y = (self.x @ [[2], [-1]] + 1 + generator.normal(size=(len(self.x), 1))).astype(np.float32)

    def get_dataset(self, dataset_type: str) -> "Points":
        return self

    @property
    def sample_shape(self) -> list[str]:
        return ["2"]

    @property
    def target_shape(self) -> list[str]:
        return ["1"]

    @property
    def dataset_description(self) -> str:
        return self.client


class Data(DataInterface):
    """Gives the tasks the shard itself."""

    @property
    def shard_descriptor(self) -> Points:
        return self._points

    @shard_descriptor.setter
    def shard_descriptor(self, points: Points) -> None:
        self._points = points

    def get_train_loader(self, **kwargs: Any) -> Points:
        return self._points

    get_valid_loader = get_train_loader

    def get_train_data_size(self) -> int:
        return len(self._points.x)

    get_valid_data_size = get_train_data_size


class Line(torch.nn.Module):
    """y = scale * (x w + b): w and b are trained, scale is frozen, and `seen` counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(2, 1)
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("seen", torch.tensor(0))
        with torch.no_grad():
            self.line.weight.copy_(torch.tensor([[0.5, 0.25]]))
            self.line.bias.fill_(-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x) * self.scale


def loss_of(model: torch.nn.Module, points: Points) -> torch.Tensor:
    return ((model(torch.from_numpy(points.x)) - torch.from_numpy(points.y)) ** 2).mean()


def fit(model, points, device, optimizer, round_number, stall=None):
    """STEPS steps on all points. At `stall`, a round, a client and a file, it makes the file and waits to be killed."""
    if stall and stall[:2] == (round_number, points.client):
        stall[2].touch()
        time.sleep(600)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, points)
        loss.backward()
        optimizer.step()
        model.seen += 1
    return {"loss": loss.item()}


def fit_noisily(model, points, device, optimizer, round_number):
    """Train as `fit` does, after a push that all three global generators draw."""
    with torch.no_grad():
        model.line.bias += random.gauss(0, 0.1) + np.random.normal(0, 0.1) + 0.1 * torch.randn(1)
    return fit(model, points, device, optimizer, round_number)


def measure(model, points, device):
    with torch.no_grad():
        return {"accuracy": -loss_of(model, points).item()}


def task_keeper(train: Callable | None = fit, validate: Callable | None = measure, **settings: Any) -> TaskInterface:
    tasks = TaskInterface()
    if train:
        tasks.register_fl_task(
            model="model", data_loader="points", device="device", optimizer="optimizer", round_num="round_number"
        )(train)
        tasks.add_kwargs(**settings)(train)
    if validate:
        tasks.register_fl_task(model="model", data_loader="points", device="device")(validate)
    return tasks


def arguments(
    rounds: int = 3,
    train: Callable | None = fit,
    validate: Callable | None = measure,
    optimizer: Callable = PLAIN,
    local_tensors: Sequence[str] = (),
    model: Callable = Line,
    data: type[DataInterface] = Data,
    settings: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return arguments of `Simulation.start` and `define`."""
    return {
        "model_provider": ModelInterface(model, optimizer, local_tensors=local_tensors),
        "task_keeper": task_keeper(train, validate, **settings or {}),
        "data_loader": data(),
        "rounds_to_train": rounds,
        **others,
    }


def simulate(
    folder: Path, clients: Sequence[str], open_shard: Callable = Points, workers: int = 1, **others: Any
) -> Simulation:
    """A simulation that has run all its rounds."""
    simulation = Simulation(clients, open_shard, folder, workers=workers)
    simulation.start("toy", **arguments(**others))
    for _ in simulation.run():
        continue
    return simulation


# Two experiments that carry something from round to round: on the server, and on the clients.
LASTING = {
    "server": {
        "aggregation": Aggregation(server_optimizer=FedAdam(learning_rate=0.1)),
        "participation": Participation(count=2, seed=5),
        "optimizer": MOMENTUM,
    },
    "clients": {"opt_treatment": "CONTINUE_LOCAL", "optimizer": MOMENTUM, "local_tensors": ["line.bias"]},
}
LASTING_CLIENTS, LASTING_ROUNDS = ["a-4", "b-2", "c-7"], 6


def simulate_lasting(kind: str, folder: Path, seconds_between_checkpoints: float, stall: tuple | None = None) -> None:
    """In a process of its own: until it is done or killed."""
    openfl_audio.simulation.checkpoint.SECONDS_BETWEEN_CHECKPOINTS = seconds_between_checkpoints
    settings = {"stall": stall} if stall else None
    simulate(folder, LASTING_CLIENTS, rounds=LASTING_ROUNDS, settings=settings, **LASTING[kind])
