"""The plan of an experiment: what the director must know. It reads this, and never unpickles what a notebook sent."""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.part import Part
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.privacy import Privacy, SiteLevel
from openfl_audio.protocol.rules import Mean
from openfl_audio.protocol.secure_aggregation import SecureAggregation, colluders, threshold

# The name becomes a folder on director and envoys, so it must not lead out of one.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# The names that OpenFL gives to the tasks of an experiment.
VALIDATE, TRAIN = "aggregated_model_validate", "train"

# Names of files in an experiment's archive.
PLAN_FILE = "plan/plan.yaml"
ENVIRONMENT_FILE = "environment.json"
# What a site that approves experiments reads: objects without pickles, the plan of the director, the initial model, and
# who sent it all.
OBJECTS_FILE, NOTEBOOK_MODULE = "objects.json", "notebook_cells"
PUBLIC_PLAN_FILE, MODEL_FILE, AUTHOR_FILE = "plan/experiment.json", "plan/model.json", "author.json"
# OpenFL's form of the objects, for sites that approve none.
PICKLES = ("model_obj.pkl", "tasks_obj.pkl", "dataloader_obj.pkl")
# Names of files in what a notebook submits: the archive for the envoys, the first global model, and this module's plan.
ARCHIVE, INITIAL_MODEL, EXPERIMENT_PLAN = "workspace.zip", "initial.safetensors", "experiment.json"


class Task(Part):
    """One task that an envoy runs in a round, in the words of OpenFL's interactive API."""

    name: str
    function_name: str
    task_type: Literal["train", "validate"]
    apply_local: bool = False

    @property
    def validates_global_model(self) -> bool:
        """Tell whether the task validates the model that the round began with."""
        return self.task_type == "validate" and not self.apply_local


Direction = Literal["max", "min"]
# It becomes part of a file's name.
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


# Bounds of well-known metrics where an experiment declares none. A share may be given in per cent, and is negative
# where chance is subtracted; no rate of errors is negative.
_SHARES = ("accuracy", "auc", "average_precision", "f1", "map", "precision", "pr_auc", "recall", "roc_auc")
_RATES = ("cer", "error_rate", "wer")
# No measurement comes near this, and a mean with a value that does says nothing of the others.
LARGEST_METRIC = 1e15
KNOWN_BOUNDS = {
    **dict.fromkeys(_SHARES, (-LARGEST_METRIC, 100.0)),
    **dict.fromkeys(_RATES, (0.0, LARGEST_METRIC)),
}
# Infinity is refused by a validator, which names the metric.
Bound = Annotated[float, Field(allow_inf_nan=True)]
Bounds = tuple[Bound, Bound]
# Metrics whose names say that they are no means: their values over all clips do not follow from those of the sites.
KNOWN_NO_MEANS = frozenset(
    {
        "auc",
        "average_precision",
        "balanced_accuracy",
        "d_prime",
        "eer",
        "f1",
        "map",
        "perplexity",
        "pr_auc",
        "precision",
        "recall",
        "roc_auc",
    }
)
Unit = Annotated[str, Field(pattern=r"^[a-z_ ]{1,64}$")]


class BestModel(Part):
    """The metric of the validation task that chooses the best global model.

    Attributes:
        metric: the name of the metric.
        direction: "max" if higher values are better, "min" if lower ones are.
        others: further metrics with their directions; by each of them one more best model is kept.
        patience: an experiment ends early when that many validations in a row were no better than the best.
        halve_rate_after: the clients' learning rate is halved whenever that many more validations in a row were no
            better than the best.
    """

    metric: str
    direction: Direction
    others: dict[MetricName, Direction] = Field(default={})
    patience: int | None = Field(default=None, ge=1)
    halve_rate_after: int | None = Field(default=None, ge=1)

    @property
    def models(self) -> dict[str, tuple[str, Direction]]:
        """Return the metric that chooses a model, and its direction, by the model's name."""
        others = {name_of_best(metric): (metric, direction) for metric, direction in self.others.items()}
        return {"best": (self.metric, self.direction), **others}


def name_of_best(metric: str | None) -> str:
    """Return the name of the best model by `metric`, or by the one that chooses the best model if that is None.

    >>> name_of_best(None), name_of_best("recall")
    ('best', 'best-recall')
    """
    return "best" if metric is None else f"best-{metric}"


def is_better(score: float, than: float | None, direction: Direction) -> bool:
    """Tell whether `score` is better than another one. Any score is better than None."""
    return than is None or (score > than if direction == "max" else score < than)


class ExperimentPlan(Part):
    """An experiment as the director sees it.

    Attributes:
        name: the name of the experiment and of its folders.
        federation_uuid: the id by which calls of OpenFL's `Aggregator` service name the experiment.
        corpus: the corpus whose envoys take part.
        envoys: the envoys that take part, or None for those of `corpus` that are online at submission or come later.
        rounds: how many rounds train.
        tasks: the tasks of a round, in their order.
        participation: who takes part in a round, and when a round closes.
        aggregation: how updates become the next model.
        best: the metric that chooses the best model.
        keep: of how many of the most recent rounds the models are kept, besides the best and the last one.
        precision: the type in which weights are transmitted.
        untrained: names of tensors that are no parameters (buffers, optimizer states): a server optimizer leaves them
            to the mean.
        metric_bounds: the least and the largest value of a metric, by its name: a report outside of them does not
            count.
        units: what sizes count, by type of task: a size is bounded by what the envoy's shard registered in that unit.
        mean_over: what a validation metric is a mean over, where that is not what the size counts ("words"), or None
            for a metric that is no mean: several envoys' values do not make the value over all clips.
        secure_aggregation: how the director learns the sum of updates only; None lets it see each.
        privacy: what differential privacy protects, and how; None is without.
    """

    name: str
    federation_uuid: str
    corpus: str | None = None
    envoys: list[str] | None = Field(default=None, min_length=1, fail_fast=True)
    rounds: int = Field(ge=1)
    tasks: list[Task] = Field(min_length=1)
    participation: Participation = Participation()
    aggregation: Aggregation = Aggregation()
    best: BestModel
    keep: int = Field(default=0, ge=0)
    precision: Literal["float32", "float16"] = "float32"
    untrained: list[str] = Field(default=[], fail_fast=True)
    metric_bounds: dict[MetricName, Bounds] = Field(default={}, max_length=1000)
    units: dict[Literal["train", "validate"], str] = Field(default={"train": "clips", "validate": "clips"})
    mean_over: dict[MetricName, Unit | None] = Field(default={}, max_length=1000)
    secure_aggregation: SecureAggregation | None = None
    privacy: Privacy | None = None

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        """Raise ValueError unless the name can be that of a folder."""
        if not NAME.fullmatch(name):
            raise ValueError(
                f"experiment name {name[:80]!r}: use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
            )
        return name

    @field_validator("metric_bounds")
    @classmethod
    def check_bounds(cls, metric_bounds: dict[str, Bounds]) -> dict[str, Bounds]:
        """Raise ValueError, naming the metric, unless its bounds are two numbers in order."""
        for name, (low, high) in metric_bounds.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"metric_bounds of '{name}' are {low} and {high}: give two numbers, the lower one first"
                )
        return metric_bounds

    def bounds_of(self, metric: str) -> Bounds:
        """Return the least and the largest value that a report of `metric` may have to count."""
        return self.metric_bounds.get(metric) or KNOWN_BOUNDS.get(metric) or (-LARGEST_METRIC, LARGEST_METRIC)

    def unit_of(self, task: Task, metric: str) -> str | None:
        """Return what the values of `metric` are means over: "clips", say, or None if they are no means."""
        unit = self.units.get(task.task_type, "clips")
        default = None if metric.lower() in KNOWN_NO_MEANS else unit
        declared = self.mean_over.get(metric, default)
        # A declared unit is that of the validation: a training task may take its mean over something else.
        return declared if declared is None or task.task_type == "validate" else unit

    def is_mean_of_sites(self, task: Task, metric: str) -> bool:
        """Tell whether the value of `metric` is a mean of several envoys' values, and not that over all clips."""
        evaluators = set(self.participation.evaluators)
        if task.validates_global_model and evaluators:
            is_of_one = len(evaluators) == 1
        else:
            is_of_one = self.envoys is not None and len({*self.envoys} - evaluators) == 1
        return not is_of_one and self.unit_of(task, metric) is None

    def check(self) -> None:
        """Raise ValueError if parts of the plan cannot be had together."""
        self.check_best()
        self.check_secure()
        self.check_site_level()

    def check_best(self) -> None:
        """Raise ValueError if a metric that is to choose a model would be a mean of several envoys' values."""
        validation = next((task for task in self.tasks if task.validates_global_model), None)
        for metric, _ in self.best.models.values():
            if validation is not None and self.is_mean_of_sites(validation, metric):
                means = sorted(name for name, unit in self.mean_over.items() if unit is not None)
                raise ValueError(
                    f"metric '{metric}' cannot choose the best model: its value over all clips is not the mean of what "
                    "several envoys validate. Name one envoy that has all validation clips in "
                    "participation=Participation(evaluators=[...]), or give `best` a metric that is a mean"
                    + (f": {' or '.join(map(repr, means[:5]))}" if means else " (see `mean_over`)")
                )

    def check_secure(self) -> None:
        """Raise ValueError if secure aggregation is wanted, and cannot be had with the rest of the plan."""
        if self.secure_aggregation is None:
            return
        if self.envoys is None:
            raise ValueError(
                "secure aggregation is among envoys that are named, and approved with the plan: give envoys"
            )
        number, participation = len({*self.envoys}), self.participation
        self.secure_aggregation.check_number(number)
        rule = self.aggregation.rule
        if not isinstance(rule, Mean):
            raise ValueError(f"rule {rule.rule} takes single updates, which secure aggregation hides: use the mean")
        if self.aggregation.max_share is not None:
            raise ValueError("max_share looks at each weight, which secure aggregation hides: set its largest_weight")
        if self.precision != "float32":
            raise ValueError("secure aggregation sends integers of 32 bits: use precision float32")
        if participation.evaluators:
            raise ValueError("an evaluator's metrics would be seen, as nobody trains with it: leave out evaluators")
        if participation.fraction is not None or participation.count is not None:
            raise ValueError("every round of secure aggregation is among all envoys: leave out fraction and count")
        if participation.quorum > threshold(number):
            raise ValueError(
                f"a quorum of {participation.quorum} is more than the {threshold(number)} of {number} envoys that "
                "secure aggregation takes in any case: leave it out"
            )

    def check_site_level(self) -> None:
        """Raise ValueError if privacy of sites is wanted, and cannot be had with the rest of the plan."""
        if not isinstance(self.privacy, SiteLevel):
            return
        if self.envoys is None:
            raise ValueError("privacy of sites divides by the number that was planned: give envoys")
        rule = self.aggregation.rule
        if not isinstance(rule, Mean) or rule.weighted:
            raise ValueError(
                "privacy of sites counts every site alike: give aggregation=Aggregation(rule=Mean(weighted=False))"
            )
        if self.aggregation.clip_norm is not None or self.aggregation.max_share is not None:
            raise ValueError("privacy of sites has a bound of its own: leave out clip_norm and max_share")
        if self.secure_aggregation is None:
            if self.privacy.colluders is not None:
                raise ValueError(
                    "colluders are those of secure aggregation: leave them out, or give secure_aggregation"
                )
        else:
            self._check_site_level_in_secret(self.privacy, self.secure_aggregation)

    def _check_site_level_in_secret(self, level: SiteLevel, secure: SecureAggregation) -> None:
        if level.clipping != "flat" or level.adaptive is not None:
            raise ValueError(
                "with secure aggregation a site clips its whole change to a bound that stays: use clipping flat, and "
                "leave out adaptive"
            )
        chosen = [name for name in ("bits", "value_range", "ranges", "largest_weight") if not secure.is_default(name)]
        if chosen:
            raise ValueError(f"privacy of sites says how changes become integers: leave out {' and '.join(chosen)}")
        number = len({*(self.envoys or ())})
        if (level.colluders or 0) > colluders(number):
            raise ValueError(
                f"colluders is {level.colluders}: secure aggregation of {number} envoys bears {colluders(number)}"
            )

    @property
    def honest_survivors(self) -> int | None:
        """Return how many sites of each round add noise that nobody else knows, at least; None where the director does.

        It is the number of updates that secure aggregation takes, less those that collude.
        """
        if not isinstance(self.privacy, SiteLevel) or self.secure_aggregation is None:
            return None
        number = len({*(self.envoys or ())})
        assumed = self.privacy.colluders
        return threshold(number) - (colluders(number) if assumed is None else assumed)

    def tasks_for_round(self, round_number: int, trains: bool = True) -> list[Task]:
        """Return the tasks of a participant: validation of the global model, then training.

        An evaluator (`trains` False) only validates. After the last round of training the final model is validated too.
        Where there is nothing to do the list is empty.
        """
        tasks = self.tasks
        if round_number >= self.rounds or not trains:
            tasks = [task for task in tasks if task.validates_global_model]
        validates = self.participation.validates(round_number, self.rounds)
        if not validates or (trains and self.participation.evaluators):
            tasks = [task for task in tasks if not task.validates_global_model]
        return tasks if round_number <= self.rounds else []

    @property
    def last_round(self) -> int:
        """Return the number of the last round.

        Where there is a validation, that is one more than the last round of training: it tells how good the last model
        is.
        """
        return self.rounds - (not any(task.validates_global_model for task in self.tasks))
