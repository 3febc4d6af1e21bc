"""Definition of an experiment in any mode: model, optimizer, tasks, data, and the plan of its rounds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openfl.interface.aggregation_functions import WeightedAverage
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface

from openfl_audio.errors import DefinitionError, PrivacyError
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.notebook.source_form import registered_function
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import TRAIN, VALIDATE, BestModel, Direction, ExperimentPlan, Task
from openfl_audio.protocol.privacy import Level, SiteLevel
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Tensors, describe
from openfl_audio.training.private_round import can_train_privately, why_not_private
from openfl_audio.training.private_steps import refuse_batch_norm

OPT_TREATMENTS = ("RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL")


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
    halve_rate_after: int | None = None,
    keep: int = 0,
    precision: Literal["float32", "float16"] = "float32",
    metric_bounds: Mapping[str, tuple[float, float]] | None = None,
    mean_over: Mapping[str, str | None] | None = None,
    secure_aggregation: SecureAggregation | None = None,
    privacy: Level | None = None,
) -> Definition:
    """Make the definition of an experiment. Raises DefinitionError if arguments of `FLExperiment.start` do not fit."""
    if opt_treatment not in OPT_TREATMENTS:
        raise DefinitionError(f"opt_treatment {opt_treatment!r} is not supported: use one of {OPT_TREATMENTS}")
    if opt_treatment == "CONTINUE_GLOBAL" and precision == "float16":
        raise DefinitionError("an optimizer's state does not fit into float16: use precision='float32'")
    if opt_treatment == "CONTINUE_GLOBAL" and secure_aggregation is not None:
        raise DefinitionError("secure aggregation sums changes of a model, and no optimizer's state: use another one")
    if any(function is not None for function in _chosen_aggregation_functions(task_keeper)):
        raise DefinitionError("set_aggregation_function is not supported: give aggregation=Aggregation(...)")
    if privacy is not None:
        check_private(privacy, task_keeper, model_provider)
    if opt_treatment == "CONTINUE_GLOBAL" and isinstance(privacy, SiteLevel):
        raise DefinitionError("privacy of sites adds noise to a model, and to no optimizer's state: use another one")
    tensors = model_provider.initial_tensors(with_optimizer=opt_treatment == "CONTINUE_GLOBAL")
    parameters = dict(model_provider.provide_model().named_parameters(remove_duplicate=False))
    try:
        plan = ExperimentPlan(
            name=name,
            federation_uuid="",
            corpus=corpus,
            envoys=None if envoys is None else list(envoys),
            rounds=rounds_to_train,
            tasks=_tasks(task_keeper),
            participation=participation or Participation(),
            aggregation=aggregation or Aggregation(),
            best=BestModel(
                metric=best[0],
                direction=best[1],
                others=dict(also_best or {}),
                patience=patience,
                halve_rate_after=halve_rate_after,
            ),
            keep=keep,
            precision=precision,
            metric_bounds=dict(metric_bounds or {}),
            mean_over=dict(mean_over or {}),
            untrained=[tensor for tensor in tensors if tensor not in parameters],
            secure_aggregation=secure_aggregation,
            privacy=privacy,
            units=getattr(data_loader, "units", ExperimentPlan.model_fields["units"].default),
        )
        plan.check()
        plan.aggregation.check_names(tensors)
        if plan.honest_survivors is not None:
            NoisySum.of(plan, describe(tensors, {}))
    except DefinitionError:
        raise
    except (PrivacyError, ValueError) as error:
        raise DefinitionError(str(error)) from None
    return Definition(plan, tensors, model_provider, task_keeper, data_loader, opt_treatment)


def check_private(privacy: Level, task_keeper: TaskInterface, model_provider: ModelInterface) -> None:
    """Raise DefinitionError, in a sentence, unless task and model can be trained with this privacy."""
    registered = task_keeper.get_registered_tasks()
    name = registered[TRAIN].function_name if TRAIN in registered else None
    if name is None:
        raise DefinitionError("privacy is about training, and no task trains: leave it out")
    task = registered_function(task_keeper.task_registry[name])
    if not isinstance(privacy, SiteLevel) and not can_train_privately(task):
        advice = "use train_privately in it, and declare that by trains_privately (openfl_audio.training.private_round)"
        raise DefinitionError(
            f"the training task '{task.__module__}.{name}' has no private steps, so that privacy of each "
            f"{privacy.unit} cannot be had with it: {why_not_private(task) or advice}"
        )
    try:
        refuse_batch_norm(model_provider.provide_model())
    except PrivacyError as error:
        raise DefinitionError(str(error)) from None


def _tasks(task_keeper: TaskInterface) -> list[Task]:
    """Return the registered tasks in the order in which they run.

    The global model is validated before it is trained: its metrics then choose the best one.
    """
    registered = task_keeper.get_registered_tasks()
    if not registered:
        raise DefinitionError("no task is registered: decorate a function with task_keeper.register_fl_task(...)")
    return [
        Task(name=name, function_name=registered[name].function_name, task_type=registered[name].task_type)
        for name in (VALIDATE, TRAIN)
        if name in registered
    ]


def _chosen_aggregation_functions(task_keeper: TaskInterface) -> list[Any]:
    return [None if type(f) is WeightedAverage else f for f in task_keeper.aggregation_functions.values()]
