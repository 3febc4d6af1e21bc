"""The contract of a workload: a model, its tasks and its data, in a form that every mode of an experiment can run."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd
import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from openfl_audio.errors import SettingsError
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.protocol.plan import Direction
from openfl_audio.training.history import Record
from openfl_audio.training.run_settings import RunSettings

Config = TypeVar("Config", bound=RunSettings)
# Metrics by the split of the corpus, such as {"test": {"accuracy": 0.9}}.
Metrics = dict[str, dict[str, float]]


class Workload(ABC, Generic[Config]):
    """Base of all workloads: subclass it in a module of the package that travels to the envoys.

    A workload keeps nothing: each method gets the configuration of the run and, where it reads the corpus, its folder.
    A corpus is divided into the shards of `world_size` clients, `rank` from 1.

    Attributes:
        config_class: the settings of a run, a subclass of RunSettings.
        corpus: the name of the corpus that envoys must serve, as their shard descriptors have it; None for any.
        builds_on: dotted names of other packages that travel to the envoys too, as this one imports them.
    """

    config_class: type[Config]
    corpus: ClassVar[str | None] = None
    builds_on: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def model(self, config: Config) -> Callable[[], torch.nn.Module]:
        """Return the recipe of the model: a function without arguments that is pickled, and builds it on each node."""

    @abstractmethod
    def tasks(self, config: Config) -> TaskInterface:
        """Return the tasks that train and validate the model: see `register_tasks`."""

    @abstractmethod
    def data(self, config: Config) -> DataInterface:
        """Return what makes the batches of the tasks from a node's shard."""

    @abstractmethod
    def best(self, config: Config) -> tuple[str, Direction]:
        """Return the validation metric that chooses the best model, and whether its "max" or "min" is best."""

    @abstractmethod
    def shard(self, config: Config, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        """Return the shard of a client as an envoy's settings name it: {"template": dotted name, "params": {...}}."""

    @abstractmethod
    def natural_clients(self, config: Config, data: Path) -> int:
        """Return how many clients the corpus has by nature, such as its speakers."""

    @abstractmethod
    def evaluate(self, model: Any, config: Config, data: Path, device: str) -> Metrics:
        """Return the metrics of `model` on clips that train nowhere, by split."""

    # What follows may stay as it is.

    def complete(self, config: Config, data: Path) -> Config:
        """Return the configuration with what only the corpus can say."""
        return config

    def local_tensors(self, config: Config) -> Sequence[str]:
        """Return patterns of the tensors that never leave their node."""
        return config.local_tensors

    def also_best(self, config: Config) -> Mapping[str, Direction]:
        """Return further metrics whose best models are kept, with their directions."""
        return {}

    def metric_bounds(self, config: Config) -> Mapping[str, tuple[float, float]]:
        """Return the least and the largest value of metrics; one out of its bounds does not count."""
        return {}

    def mean_over(self, config: Config) -> Mapping[str, str | None]:
        """Return what validation metrics are means over, where that is not what the data's sizes count.

        None is a metric that is no mean: see `FLExperiment.start`.
        """
        return {}

    def save(self, model: Any, config: Config, folder: str | Path) -> None:
        """Write `model` into `folder`, so that others can load it: a model of Transformers by default."""
        model.save_pretrained(folder)

    def preprocess(self, config: Config, shards: Iterable[ShardDescriptor], device: str) -> int:
        """Keep on this machine what training on `shards` would compute first, and return of how many clips.

        Raises SettingsError where nothing is kept.
        """
        raise SettingsError(f"{self.name} keeps nothing that could be made beforehand")

    def describe_model(self, config: Config, data: Path) -> Mapping[str, Any]:
        """Return what the config.json of a saved model says besides, such as the names of the corpus's classes."""
        return {}

    def plot(self, records: Sequence[Record], config: Config, data: Path, clients: int, part: str, out: Path) -> None:
        """Draw a run into the folder `out`: the `records` of its rounds, and the `part` of the corpus that trained.

        `part` is "rank,world size" as shard descriptors take it, and `clients` the number of those that trained.
        """

    def plot_clients(self, scores: Mapping[str, Mapping[str, float]], config: Config, data: Path, out: Path) -> None:
        """Draw the metrics of a model at each client, given by its name, into the folder `out`."""

    def plot_comparison(self, histories: Mapping[str, Sequence[Record]], config: Config, path: Path) -> None:
        """Draw several runs, whose records are given by name, into one picture: the metric of `best` by round."""
        from openfl_audio.training.plots import plot_curves

        plot_curves(histories, self.best(config)[0], path)

    def plot_search(self, trials: pd.DataFrame, out: Path) -> None:
        """Draw the trials of a search, a row each, into the folder `out`, besides their curves and heat map."""

    @property
    def package(self) -> ModuleType:
        """The package whose module defines the workload."""
        return import_module(type(self).__module__.rpartition(".")[0])

    @property
    def packages(self) -> list[ModuleType]:
        """Return the packages that are sent to the envoys: the workload's own, and those that it builds on."""
        return [self.package, *map(import_module, self.builds_on)]

    @property
    def name(self) -> str:
        """Return the name of the workload's package."""
        return self.package.__name__.rpartition(".")[2]

    def start_arguments(self, config: Config) -> dict[str, Any]:
        """Return the arguments of `FLExperiment.start` and `Simulation.start` that the workload decides."""
        provider = ModelInterface(
            self.model(config), config.optimizer.recipe(), local_tensors=self.local_tensors(config)
        )
        return {
            "model_provider": provider,
            "task_keeper": self.tasks(config),
            "data_loader": self.data(config),
            "best": self.best(config),
            "also_best": dict(self.also_best(config)),
            "metric_bounds": dict(self.metric_bounds(config)),
            "mean_over": dict(self.mean_over(config)),
            "corpus": self.corpus,
        }


def register_tasks(
    train: Callable[..., dict[str, float]],
    validate: Callable[..., dict[str, float]],
    train_arguments: Mapping[str, Any],
    validate_arguments: Mapping[str, Any] | None = None,
) -> TaskInterface:
    """Return an experiment's tasks, from two functions of a module.

    The first parameter of each is the model, the second the batches of train or validation data, whatever they are
    called. Others are called `device`, `optimizer` (of `train` only) and, where a task wants it, `round_number`; the
    further arguments are sent with the experiment. Each task returns metrics by name.
    """
    keeper = TaskInterface()
    for task, arguments in ((train, train_arguments), (validate, validate_arguments or {})):
        model, data, *others = inspect.signature(task).parameters
        keeper.register_fl_task(
            model=model,
            data_loader=data,
            device="device",
            optimizer="optimizer" if task is train else None,
            round_num="round_number" if "round_number" in others else None,
        )(task)
        keeper.add_kwargs(**arguments)(task)
    return keeper
