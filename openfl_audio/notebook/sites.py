"""Each site judged by further experiments: trained alone, and with the models of the others validated at it."""

import copy
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from openfl.interface.interactive_api.experiment import TaskInterface

from openfl_audio.errors import DefinitionError
from openfl_audio.notebook.interactive_api import Federation, FLExperiment
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import VALIDATE, Direction
from openfl_audio.training.history import Record
from openfl_audio.training.sites import best_round, scores_by_site


def read_records(experiment: FLExperiment) -> list[Record]:
    """Return the records of an experiment's rounds, with the metrics of each envoy; wait for its end."""
    messages = experiment.federation.dir_client.stream_history(experiment.experiment_name)
    return [message for message in messages if isinstance(message, dict)]


def train_alone(
    federation: Federation,
    name: str,
    workspace: ModuleType | list[ModuleType],
    envoys: Iterable[str],
    **arguments: Any,
) -> dict[str, FLExperiment]:
    """Start for each envoy an experiment NAME-alone-ENVOY in which it trains alone, and return them by envoy.

    They run side by side, as each envoy has one of them. `arguments` are those of `FLExperiment.start` with which all
    trained together; run again, the notebook takes up the experiments of the first time.
    """
    experiments = {}
    for envoy in envoys:
        seed = getattr(arguments.get("participation"), "seed", 0)
        alone = {**arguments, "envoys": [envoy], "participation": Participation(seed=seed), "if_exists": "attach"}
        experiments[envoy] = FLExperiment(federation, f"{name}-alone-{envoy}", workspace=workspace)
        experiments[envoy].start(**alone)
    return experiments


def scores_alone(experiments: Mapping[str, FLExperiment], best: tuple[str, Direction]) -> dict[str, float]:
    """Return the best validation score of each envoy that trained alone, on its own clips; wait for their ends."""
    scores: dict[str, float] = {}
    for experiment in experiments.values():
        records = read_records(experiment)
        scores |= scores_by_site(records, best[0], best_round(records, best))
    return scores


def cross_validate(
    federation: Federation,
    name: str,
    workspace: ModuleType | list[ModuleType],
    models: Mapping[str, torch.nn.Module],
    **arguments: Any,
) -> dict[str, dict[str, float]]:
    """Validate each of `models`, given by name, at all envoys: the score by envoy, by the name of the model.

    Each is an experiment NAME-of-MODEL that trains nothing; the recordings stay where they are. `arguments` are those
    of `FLExperiment.start`; the score is the metric of `best`.

    Raises:
        DefinitionError: there is no validation task.
    """
    keeper = validation_only(arguments["task_keeper"])
    for model in models:
        provider = copy.copy(arguments["model_provider"])
        provider.start_from(models[model])
        validation = {**arguments, "task_keeper": keeper, "model_provider": provider, "if_exists": "attach"}
        FLExperiment(federation, f"{name}-of-{model}", workspace=workspace).start(**validation)
    matrix = {}
    for model in models:
        records = read_records(FLExperiment(federation).attach(f"{name}-of-{model}"))
        matrix[model] = scores_by_site(records, arguments["best"][0], records[0]["round"])
    return matrix


def validation_only(task_keeper: TaskInterface) -> TaskInterface:
    """Return the tasks without the one that trains. Raises DefinitionError if none validates."""
    registered = task_keeper.get_registered_tasks()
    if VALIDATE not in registered:
        raise DefinitionError("the models of other sites are validated, and the tasks have no validation")
    keeper = copy.copy(task_keeper)
    keeper._tasks = {VALIDATE: registered[VALIDATE]}
    return keeper
