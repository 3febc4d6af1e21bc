"""What an experiment is, whatever mode it runs in: model, optimizer, tasks, data, and the plan of its rounds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from openfl.federated import Plan
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.interface.interactive_api import experiment as openfl_experiment
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface

from federation.adapter import all_names, remember_weights
from federation.aggregation import Aggregation
from federation.participation import Participation
from federation.plan import BestModel, Direction, ExperimentPlan, Task
from federation.pretrained import read_weights
from federation.progress import TRAIN, VALIDATE
from federation.tensors import Tensors

OPT_TREATMENTS = ("RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL")


class ModelInterface(openfl_experiment.ModelInterface):
    """A model and its optimizer, as recipes: they are built on every node, and only named tensors travel.

    OpenFL pickles the model object, which models with parametrized (weight-normed) layers refuse.
    """

    def __init__(
        self,
        model: Callable[[], torch.nn.Module],
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
        framework_plugin: str = "federation.adapter.FrameworkAdapterPlugin",
        local_tensors: Sequence[str] = (),
    ) -> None:
        """`model()` builds the model, `optimizer(parameters)` an optimizer: functools.partial makes both.

        Tensors whose names match one of the patterns in `local_tensors` ("*.norm.*", "head.*") never leave a node: each
        keeps its own, from round to round.
        """
        if isinstance(model, torch.nn.Module):
            raise TypeError(
                f"model is a {type(model).__name__}: give a recipe, e.g. functools.partial(create_model, ...)"
            )
        if isinstance(local_tensors, str):
            raise TypeError(f"local_tensors is {local_tensors!r}: give a list of patterns")
        super().__init__(model, optimizer, framework_plugin)
        self.local_tensors = tuple(local_tensors)
        self._built: torch.nn.Module | None = None
        self._weights: Path | None = None

    def start_from(self, weights: str | Path) -> None:
        """Let experiments begin with the weights in a safetensors file, or in a folder that `save_pretrained` wrote.

        They are read where the experiment is started, and nowhere else. Frozen weights do not travel, so they stay as
        the recipe builds them.
        """
        self._weights = Path(weights)

    def provide_model(self) -> torch.nn.Module:
        """The model of this process, built at the first call."""
        if self._built is None:
            self._built = self.model()
        return self._built

    def provide_optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer over the model's trained parameters."""
        parameters = [parameter for parameter in self.provide_model().parameters() if parameter.requires_grad]
        optimizer = self.optimizer(parameters)
        if hasattr(optimizer, "set_old_weights"):
            # OpenFL's FedProx takes no step before it knows where it started.
            remember_weights(optimizer)
        return optimizer

    def initial_tensors(self, with_optimizer: bool) -> Tensors:
        """What travels of the model as it is built, and with `with_optimizer` of its optimizer.

        Raises ValueError, naming the pattern, if one of `local_tensors` matches nothing, or only some of the names of
        one memory; WeightsError, naming the tensor, if what `start_from` names does not fit.
        """
        adapter = Plan.build(self.framework_plugin, {})
        optimizer = self.provide_optimizer() if with_optimizer else None
        tensors = adapter.get_tensor_dict(self.provide_model(), optimizer)
        if self._weights is not None:
            tensors |= read_weights(self._weights, self.provide_model())
        local = self._local_names(tensors)
        return {name: tensor for name, tensor in tensors.items() if name not in local}

    def _local_names(self, tensors: Tensors) -> set[str]:
        """Those of `tensors` that a pattern of `local_tensors` matches, under all names that their memory has."""
        names = {name: [name] for name in tensors} | all_names(self.provide_model())
        matched = set()
        for pattern in self.local_tensors:
            matching = {each for others in names.values() for each in others if fnmatchcase(each, pattern)}
            if not matching:
                raise ValueError(f"local_tensors: '{pattern}' matches no trained tensor, e.g. {sorted(tensors)[:3]}")
            matched |= matching
        for others in names.values():
            local = matched.intersection(others)
            if local and len(local) < len(others):
                raise ValueError(
                    f"local_tensors: '{min(local)}' is one memory with {sorted(set(others) - local)}, which no pattern "
                    "matches: it stays on the node under all of its names or under none"
                )
        return matched

    def model_with(self, tensors: Tensors) -> torch.nn.Module:
        """A new model with these weights. What stays on the nodes is in it as it is at the start."""
        model = self.model()
        adapter = Plan.build(self.framework_plugin, {})
        own = adapter.get_tensor_dict(model)
        # An optimizer's state belongs to no model.
        adapter.set_tensor_dict(model, own | {name: tensor for name, tensor in tensors.items() if name in own})
        return model

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": None}


@dataclass(frozen=True)
class Definition:
    """An experiment that is ready to run; `tensors` are the first global model."""

    plan: ExperimentPlan
    tensors: Tensors
    model_provider: ModelInterface
    task_keeper: TaskInterface
    data_loader: DataInterface
    opt_treatment: str


def define(
    name: str,
    *,
    model_provider: ModelInterface,
    task_keeper: TaskInterface,
    data_loader: DataInterface,
    rounds_to_train: int,
    opt_treatment: str = "RESET",
    envoys: Iterable[str] | None = None,
    corpus: str | None = None,
    participation: Participation | None = None,
    aggregation: Aggregation | None = None,
    best: tuple[str, Direction] = ("accuracy", "max"),
    also_best: Mapping[str, Direction] | None = None,
    patience: int | None = None,
    keep: int = 0,
    precision: Literal["float32", "float16"] = "float32",
    metric_bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Definition:
    """For the arguments see `federation.interactive_api.FLExperiment.start`. Raises ValueError if they do not fit."""
    if opt_treatment not in OPT_TREATMENTS:
        raise ValueError(f"opt_treatment {opt_treatment!r} is not supported: use one of {OPT_TREATMENTS}")
    if opt_treatment == "CONTINUE_GLOBAL" and precision == "float16":
        raise ValueError("an optimizer's state does not fit into float16: use precision='float32'")
    if any(function is not None for function in _chosen_aggregation_functions(task_keeper)):
        raise ValueError("set_aggregation_function is not supported: give aggregation=Aggregation(...)")
    tensors = model_provider.initial_tensors(with_optimizer=opt_treatment == "CONTINUE_GLOBAL")
    parameters = dict(model_provider.provide_model().named_parameters(remove_duplicate=False))
    plan = ExperimentPlan(
        name=name,
        federation_uuid="",
        corpus=corpus,
        envoys=None if envoys is None else list(envoys),
        rounds=rounds_to_train,
        tasks=_tasks(task_keeper),
        participation=participation or Participation(),
        aggregation=aggregation or Aggregation(),
        best=BestModel(metric=best[0], direction=best[1], others=dict(also_best or {}), patience=patience),
        keep=keep,
        precision=precision,
        metric_bounds=dict(metric_bounds or {}),
        untrained=[tensor for tensor in tensors if tensor not in parameters],
        units=getattr(data_loader, "units", ExperimentPlan.model_fields["units"].default),
    )
    return Definition(plan, tensors, model_provider, task_keeper, data_loader, opt_treatment)


def _tasks(task_keeper: TaskInterface) -> list[Task]:
    """The global model is validated before it is trained: its metrics then choose the best one."""
    registered = task_keeper.get_registered_tasks()
    if not registered:
        raise ValueError("no task is registered: decorate a function with task_keeper.register_fl_task(...)")
    return [
        Task(name=name, function_name=registered[name].function_name, task_type=registered[name].task_type)
        for name in (VALIDATE, TRAIN)
        if name in registered
    ]


def _chosen_aggregation_functions(task_keeper: TaskInterface) -> list[Any]:
    return [None if type(f) is WeightedAverage else f for f in task_keeper.aggregation_functions.values()]
