"""Model, data interface and tasks of the toy experiment."""

import time
from functools import partial

import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface

from openfl_audio.node.progress import report
from openfl_audio.notebook.interactive_api import ModelInterface
from openfl_audio.training.private_round import train_privately, trains_privately


class PointsData(DataInterface):
    @property
    def shard_descriptor(self):
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, shard_descriptor):
        self._shard_descriptor = shard_descriptor
        self.points = shard_descriptor.get_dataset("train")

    def get_train_loader(self, **kwargs):
        return self.points

    get_valid_loader = get_train_loader

    def get_train_data_size(self):
        return len(self.points)

    get_valid_data_size = get_train_data_size


def create_model(start: float = 0.0) -> torch.nn.Module:
    """Two trained tensors and a frozen one."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(start)
        model[1].weight.fill_(1.0)
    model[1].weight.requires_grad_(False)
    return model


def model_interface(start: float = 0.0) -> ModelInterface:
    return ModelInterface(partial(create_model, start), partial(torch.optim.SGD, lr=0.1))


def add_points(model, points, device, optimizer):
    """ "Training" whose result can be told without a computer: every weight grows by the number of points."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.add_(len(points))
    return {"loss": float(len(points))}


def distance(model, points, device):
    """Return how far the slope is from 2."""
    return {"accuracy": -abs(model[0].weight.item() - 2), "slope": model[0].weight.item()}


def task_interface(train=add_points, validate=distance) -> TaskInterface:
    tasks = TaskInterface()
    tasks.register_fl_task(model="model", data_loader="points", device="device", optimizer="optimizer")(train)
    tasks.register_fl_task(model="model", data_loader="points", device="device")(validate)
    return tasks


def add_points_slowly(model, points, device, optimizer):
    """Long enough for something to happen meanwhile."""
    time.sleep(0.3)
    return add_points(model, points, device, optimizer)


def create_large_model() -> torch.nn.Module:
    """36 MB, all zeros: long enough on its way to be caught there."""
    model = torch.nn.Linear(3000, 3000, bias=False)
    torch.nn.init.zeros_(model.weight)
    return model


def first_weight(model, points, device):
    return {"accuracy": 0.0, "slope": next(model.parameters()).flatten()[0].item()}


def tell_names(model, points, device, optimizer, round_number):
    """Print and report whose points these are, and fail with it in the second round."""
    person = points.speakers[0]
    print(person, points.files)
    report(1, 2, **{person: 1.0, "loss": 2.0})
    time.sleep(2.5)  # longer than the pause between two reports
    if round_number == 1:
        try:
            float(person)
        except ValueError as error:
            raise RuntimeError(f"no number: {points.files}") from error
    return add_points(model, points, device, optimizer) | {person: 0.5}


def name_telling_tasks() -> TaskInterface:
    tasks = TaskInterface()
    parts = {"model": "model", "data_loader": "points", "device": "device"}
    tasks.register_fl_task(**parts, optimizer="optimizer", round_num="round_number")(tell_names)
    tasks.register_fl_task(**parts)(distance)
    return tasks


@trains_privately
def fit_privately(model, points, device, optimizer):
    """Fit the line by DP-SGD."""
    x, y = (torch.stack([torch.from_numpy(points[clip][part]) for clip in range(len(points))]) for part in (0, 1))

    def losses(clips):
        return ((model(x[clips]) - y[clips]) ** 2)[:, 0]

    # A loss that a task tells all the same stays at a site with a budget.
    return train_privately(model, optimizer, [""] * len(points), losses) | {"loss": losses([0]).item()}


def leak(model, points, device, optimizer):
    """Train without noise, and tell the points."""
    return add_points(model, points, device, optimizer) | {"secret": float(points[0][1][0])}


def create_blank_model() -> torch.nn.Module:
    """4096 zeros, so that an update is what a site has made of them."""
    model = torch.nn.Linear(4096, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return model


def plant_numbers(model, points, device, optimizer):
    """Make a model of numbers that are found nowhere else: the number of points is their seed."""
    with torch.no_grad():
        model.weight.uniform_(-1, 1, generator=torch.Generator().manual_seed(len(points)))
    return {"loss": float(len(points))}
