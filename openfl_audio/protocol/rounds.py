"""Bookkeeping of an experiment's rounds: who has which task, what came back, and what that says of the model.

It has no sockets, no clock and no weights, so that a director and a simulation alike can drive it.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from openfl_audio.errors import RoundFailedError, TooFewUpdatesError, UnknownMetricError, UpdateRefusedError
from openfl_audio.protocol.messages import SecureSum, TaskResult, UpdateMessage
from openfl_audio.protocol.plan import ExperimentPlan, Task, is_better
from openfl_audio.protocol.shard_sizes import Sizes

Results = dict[str, TaskResult]
# The note on a task for which an envoy had no clips, or too few, by whether the task trains.
_NOTHING_DONE = {
    True: "task '{}' trained on no clips: its update does not count",
    False: "no clips for task '{}': its metrics are those of the others",
}
# An envoy may report a thousand metrics, and each may be undefined.
MAX_NOTES = 10


class Progress(BaseModel):
    """Progress of an experiment, kept in the file of the global model that round `round_number` begins with.

    Attributes:
        round_number: the next round, from 0.
        best_scores: the best score so far by the name of the model that it chooses.
        validations_since_best: how many validations in a row were no better than the best one.
        rate_halvings: how often the clients' learning rate has been halved.
        aggregations: how many global models have been made from updates.
        reported: metrics that choose a best model and have been reported so far, defined or not.
        releases: in how many rounds each envoy has released what it trained, where the plan has privacy.
        clip: the bound on updates that follows their norms, once a round has moved it.
    """

    # Keys of another version are kept.
    model_config = ConfigDict(extra="allow", frozen=True)

    round_number: int = 0
    best_scores: dict[str, float] = {}
    validations_since_best: int = 0
    rate_halvings: int = 0
    aggregations: int = 0
    reported: list[str] = []
    releases: dict[str, int] = {}
    clip: float | None = None


class Rounds:
    """The rounds of one experiment.

    Attributes:
        participants: the tasks of the current round by envoy.
        results: the results that count in the current round, by envoy and task.
        refused: why an answer does not count, by envoy.
        summed: how the updates were summed in secret, None where each is seen.
        registered: sizes of the envoys' shards, by envoy. No answer weighs more than that, whatever its sender says.
    """

    results: dict[str, Results]
    summed: SecureSum | None
    _merged: Results

    def __init__(self, plan: ExperimentPlan, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress
        self.participants: dict[str, list[Task]] = {}
        self.registered: dict[str, Sizes] = {}
        self._noted: list[tuple[str, str]] = []
        self._recorded_notes = 0
        self._forget_answers()

    @property
    def round_number(self) -> int:
        """Return the number of the current round, from 0."""
        return self.progress.round_number

    @property
    def finished(self) -> bool:
        """Tell whether no round is left, or patience is at its end.

        One more round than there are rounds of training validates the last model.
        """
        patience = self.plan.best.patience
        if patience is not None and self.progress.validations_since_best >= patience:
            return True
        return self.round_number > self.plan.last_round

    @property
    def rate_factor(self) -> float:
        """Return what the clients' learning rate is multiplied by in the current round."""
        return 0.5**self.progress.rate_halvings

    @property
    def trains(self) -> bool:
        """Tell whether the round is there to train, also where no member that trains is available."""
        return _has_training(self.plan.tasks_for_round(self.round_number))

    @property
    def quorum(self) -> int:
        """Return how many answers have to count.

        Where only evaluators answer, there may be fewer of them than a quorum of updates.
        """
        participation = self.plan.participation
        if self.trains or not participation.evaluators:
            return participation.quorum
        return min(participation.quorum, len(participation.evaluators))

    @property
    def trained(self) -> dict[str, int]:
        """Return the number of clips that each envoy trained on whose update counts.

        It is the envoy's own word, and no more than its shard has registered. An envoy that had too few clips for its
        task trained on none, and is left out.
        """
        return dict(sorted(self._clips.items()))

    def bounded(self, envoy: str, task: Task, size: int) -> int:
        """Return `size` of a result of `envoy`, or what its shard registered if that is less."""
        return self._bounded(envoy, task, size, self._unit(task))

    def _bounded(self, envoy: str, task: Task, count: int, unit: str) -> int:
        registered = self.registered.get(envoy, {}).get(task.task_type, {})
        return min(count, registered.get(unit, count))

    def _weight(self, envoy: str, task: Task, result: TaskResult, metric: str) -> int:
        """Return what the value of `metric` is a mean over, by the word of `envoy`, and no more than it registered."""
        unit = self.plan.unit_of(task, metric)
        if unit is None or metric not in result.counts:
            return self.bounded(envoy, task, result.size)
        return self._bounded(envoy, task, result.counts[metric], unit)

    def open(self, members: Collection[str], participants: Collection[str] | None = None) -> None:
        """Open the round: draw its participants from `members`.

        After a restart, `participants` names those that had been drawn before.
        """
        self.participants = self._tasks_of(self._draw(members) if participants is None else participants)
        self._forget_answers()
        # What was noted after the last round's record belongs to this round.
        self._noted = self._noted[self._recorded_notes :]
        self._recorded_notes = 0

    def contributors(self, members: Collection[str]) -> list[str]:
        """Return the members whose answers would count towards the quorum.

        They are the trainers in a round that trains, otherwise the evaluators.
        """
        tasks = self._tasks_of(self._draw(members))
        return [envoy for envoy in tasks if _has_training(tasks[envoy]) or not self.trains]

    def can_reach_quorum(self, members: Collection[str]) -> bool:
        """Tell whether a round of `members` would have a quorum if all of them answered."""
        return len(self.contributors(members)) >= self.quorum

    def can_close_without(self, envoy: str) -> bool:
        """Tell whether the open round could have its quorum without an answer of `envoy`, or has its answer already."""
        others = [
            name
            for name, tasks in self.participants.items()
            if name != envoy and name not in self.refused and (_has_training(tasks) or not self.trains)
        ]
        return not self.tasks_for(envoy) or len(others) >= self.quorum

    def tasks_for(self, envoy: str) -> list[Task]:
        """Return the tasks that `envoy` still has in this round: none when it has answered."""
        return [] if self._has_answered(envoy) else self.participants.get(envoy, [])

    def is_complete(self, seconds_open: float) -> bool:
        """Tell whether the round, open for `seconds_open` seconds, can close."""
        is_quorum = self._counted() >= self.quorum
        return self.plan.participation.is_complete(len(self.participants), len(self._answered), is_quorum, seconds_open)

    def is_late_or_repeated(self, envoy: str, round_number: int) -> bool:
        """Tell whether an answer of `envoy` is late or a repetition.

        Such an answer is dropped and not refused: its sender could not know that it is not wanted any more.
        """
        return round_number < self.round_number or (round_number == self.round_number and self._has_answered(envoy))

    def check(self, update: UpdateMessage) -> None:
        """Raise UpdateRefusedError unless the results of an update are those of this round's tasks."""
        tasks = {task.name: task for task in self.tasks_for(update.envoy)}
        error_prefix = str(update)
        if update.round != self.round_number or not tasks:
            wanted = sorted(tasks) or "nothing"
            raise UpdateRefusedError(f"{error_prefix}: round {self.round_number} asks for {wanted} from it")
        if update.results.keys() != tasks.keys():
            raise UpdateRefusedError(
                f"{error_prefix}: has results of {sorted(update.results)[:5]}, asked for {sorted(tasks)}"
            )

    def count(self, update: UpdateMessage) -> None:
        """Count an update that has been checked."""
        self.results[update.envoy] = update.results
        self._answered.add(update.envoy)
        for task in self.plan.tasks:
            if task.task_type == "train" and task.name in update.results:
                clips = self.bounded(update.envoy, task, update.results[task.name].size)
                if clips > 0:
                    self._clips[update.envoy] = clips

    def count_sum(self, summed: SecureSum, results: Results, trained: bool) -> None:
        """Count the sum of several envoys' updates, and the `results` over all of them, by task.

        `trained` tells whether the sum has weights of tensors.
        """
        self.summed, self._merged, self._sum_trained = summed, results, trained
        self.results = {envoy: {} for envoy in summed.envoys}
        self._answered |= {*summed.envoys}

    def note_clipped(self, values: int) -> None:
        """Note that envoys together have clipped so many values of their changes."""
        if values and self.summed:
            reason = f"{values} values changed more than their range (see `SecureAggregation`), and count as that"
            self.note(", ".join(self.summed.envoys), reason)

    def note_bounded(self, sites: int) -> None:
        """Note that so many of the envoys of a secret sum have more clips than an update may weigh."""
        settings = self.plan.secure_aggregation
        if sites and self.summed and settings:
            self.note(
                ", ".join(self.summed.envoys),
                f"{sites} of these envoys have more clips than the largest weight of {settings.largest_weight} (see "
                "`SecureAggregation`), and weigh that",
            )

    @property
    def aggregates(self) -> bool:
        """Tell whether the next global model follows from the updates of this round."""
        return bool(self._clips) or self._sum_trained

    def refuse(self, envoy: str, reason: str, released: bool = True) -> None:
        """Note that `envoy` has answered, and why its answer does not count: `reason` names neither envoy nor round.

        One that departs has not `released` anything.
        """
        self.refused[envoy] = reason
        if not released:
            self._silent.add(envoy)
        self._answered.add(envoy)

    def note(self, envoy: str, reason: str) -> None:
        """Note what people should know of `envoy` in this round, besides what its answer says."""
        self._noted.append((envoy, reason))

    def require_quorum(self) -> None:
        """Raise TooFewUpdatesError, with the reasons, if too few answers count.

        All participants have answered, or the deadline is over.
        """
        counted, quorum = self._counted(), self.quorum
        nothing_to_do = not self.participants and not self.trains
        if nothing_to_do or counted >= quorum:
            return
        trainers = [envoy for envoy, tasks in self.participants.items() if _has_training(tasks)]
        idle = [envoy for envoy in trainers if envoy in self.results and envoy not in self.trained]
        reasons = [*self._refusals(), *(f"envoy '{envoy}' trained on no clips" for envoy in idle)]
        raise TooFewUpdatesError(
            f"round {self.round_number}: {counted} updates counted of a quorum of {quorum}: "
            + ("; ".join(reasons) or "no other envoy was asked")
        )

    def _refusals(self) -> list[str]:
        return [f"envoy '{envoy}': {reason}" for envoy, reason in self.refused.items()]

    def check_answers(self) -> None:
        """Raise RoundFailedError unless the answers suffice to close the round, and to choose the best model by."""
        self.require_quorum()
        self.require_metrics()
        self.require_updates()

    def require_metrics(self) -> None:
        """Raise UnknownMetricError if no validation so far has reported a metric that chooses a best model.

        A metric whose value is undefined is reported. A round without validation says nothing.
        """
        reported = self._reported_names()
        unknown = sorted(self._wanted_metrics - reported - {*self.progress.reported})
        if self._validations() and unknown:
            raise UnknownMetricError(
                f"round {self.round_number}: no envoy reports the metric '{unknown[0]}', by which the best model is to "
                f"be chosen: the validation task reports {sorted(reported)[:20] or 'none'}; give `best` one of those"
            )

    def check_members(self, members: Collection[str]) -> None:
        """Raise ValueError if a round of all `members` could not do what the aggregation says."""
        if self.trains:
            self.plan.aggregation.rule.check_number(len(self.contributors(members)))

    def require_updates(self) -> None:
        """Raise RoundFailedError if the updates that count cannot be combined as the aggregation says."""
        try:
            if self.trained:
                self.plan.aggregation.rule.check_number(len(self.trained))
        except ValueError as error:
            raise RoundFailedError("; ".join([f"round {self.round_number}: {error}", *self._refusals()])) from None

    @property
    def releases(self) -> dict[str, int]:
        """Return in how many rounds, with this one, each envoy has released what it trained; none without privacy.

        An update that does not count has left its site all the same, and so may one that came too late.
        """
        releases = dict(self.progress.releases)
        may_be_late = self.plan.participation.deadline_seconds is not None
        for envoy, tasks in self.participants.items():
            came = envoy in self._answered or may_be_late
            if self.plan.privacy is not None and _has_training(tasks) and came and envoy not in self._silent:
                releases[envoy] = releases.get(envoy, 0) + 1
        return dict(sorted(releases.items()))

    def record(self) -> dict[str, Any]:
        """Return what is kept of the round: means of metrics over all clips, and what each envoy reported.

        Validation metrics are those of the model that the round began with; `best` says whether that is the best so
        far. `means_of_sites` names the metrics, by task, whose means are not their values over all clips. See
        `messages.RoundRecord`, which has what the director adds as well.
        """
        tasks = {task.name: task for tasks in self.participants.values() for task in tasks}
        metrics = {task.name: self._mean_metrics(task) for task in self.plan.tasks if task.name in tasks}
        means_of_sites = {
            name: [metric for metric in means if self.plan.is_mean_of_sites(tasks[name], metric)]
            for name, means in metrics.items()
        }
        self._recorded_notes = len(self._noted)
        return {
            "round": self.round_number,
            "best": "best" in self.better_scores(),
            "metrics": metrics,
            "means_of_sites": {name: means for name, means in means_of_sites.items() if means},
            "envoys": {
                envoy: {
                    name: {"size": result.size, **self._defined(tasks[name], result)}
                    for name, result in results.items()
                }
                for envoy, results in sorted(self.results.items())
            },
            "refused": dict(sorted(self.refused.items())),
            "missing": self._missing(),
            "notes": self.notes(),
            "secure": self.summed.model_dump() if self.summed else None,
        }

    def notes(self) -> dict[str, list[str]]:
        """Return what did not count, or not in full, by envoy: each with its reasons."""
        notes: dict[str, list[str]] = {}
        for envoy, reason in self._notes():
            notes.setdefault(envoy, []).append(reason)
        return {
            envoy: reasons[:MAX_NOTES] + [f"and {len(reasons) - MAX_NOTES} more"] * (len(reasons) > MAX_NOTES)
            for envoy, reasons in sorted(notes.items())
        }

    def _notes(self) -> Iterator[tuple[str, str]]:
        yield from self._noted
        yield from self.refused.items()
        for envoy in self._missing():
            yield envoy, "no answer when the round closed"
        for envoy, results in self.results.items():
            for task in self.participants.get(envoy, []):
                if task.name not in results:
                    continue  # it is hidden in a sum
                size = results[task.name].size
                if size == 0:
                    yield envoy, _NOTHING_DONE[task.task_type == "train"].format(task.name)
                if (bound := self.bounded(envoy, task, size)) < size:
                    unit = self._unit(task)
                    yield envoy, f"claims {size} {unit} for task '{task.name}', and registered {bound}: it weighs those"
                yield from ((envoy, note) for note in self._metric_notes(envoy, task, results[task.name]))
        clips = list(self.trained.values())
        weights = self.plan.aggregation.weights(clips) if clips else []
        for envoy, claimed, weight in zip(self.trained, clips, weights, strict=True):
            if weight != claimed:
                yield envoy, f"weight {weight:.6g} instead of {claimed}: the share of one update is limited"

    def _metric_notes(self, envoy: str, task: Task, result: TaskResult) -> Iterator[str]:
        for metric, value in result.metrics.items():
            if fault := fault_of(self.plan, task, result, metric):
                yield f"metric '{metric[:64]}' of task '{task.name}' is {value:g}: {fault}"
            elif (unit := self.plan.unit_of(task, metric)) is not None and metric in result.counts:
                count, bound = result.counts[metric], self._weight(envoy, task, result, metric)
                if bound < count:
                    yield f"claims {count} {unit} for metric '{metric[:64]}', and registered {bound}: it weighs those"

    def _unit(self, task: Task) -> str:
        return self.plan.units.get(task.task_type, "clips")

    @property
    def _wanted_metrics(self) -> set[str]:
        return {metric for metric, _ in self.plan.best.models.values()}

    def _missing(self) -> list[str]:
        return [envoy for envoy in self.participants if not self._has_answered(envoy)]

    def _defined(self, task: Task, result: TaskResult) -> dict[str, float]:
        """Return the metrics that count."""
        return {name: value for name, value in result.metrics.items() if not fault_of(self.plan, task, result, name)}

    def _reported_names(self) -> set[str]:
        """Return the names of the global model's validation metrics, of envoys that had clips for it."""
        return {name for result in self._validations() for name in result.metrics}

    def _validations(self) -> list[TaskResult]:
        """Return validations of the global model, of envoys that had clips for it."""
        tasks = [task.name for task in self.plan.tasks if task.validates_global_model]
        results = [results[task] for _, results in self._sources() for task in tasks if task in results]
        return [result for result in results if result.size > 0]

    def better_scores(self) -> dict[str, float]:
        """Return the scores in which the model that the round began with is better than all before it.

        They are by the name of the model that they choose, such as "best".
        """
        better = {}
        for name, (metric, direction) in self.plan.best.models.items():
            score = self._score(metric)
            if score is not None and is_better(score, self.progress.best_scores.get(name), direction):
                better[name] = score
        return better

    def next_progress(self) -> Progress:
        """Return the progress after this round."""
        # A validation in which no envoy could measure the metric is one without a better model.
        better, reported = self.better_scores(), self._reported_names()
        validated = bool(self._validations())
        waited = 0 if "best" in better else self.progress.validations_since_best + validated
        halve_after = self.plan.best.halve_rate_after
        halves = halve_after is not None and validated and waited > 0 and waited % halve_after == 0
        return self.progress.model_copy(
            update={
                "round_number": self.round_number + 1,
                "best_scores": self.progress.best_scores | better,
                "validations_since_best": waited,
                "rate_halvings": self.progress.rate_halvings + halves,
                "aggregations": self.progress.aggregations + self.aggregates,
                "releases": self.releases,
                "clip": self.progress.clip if self.next_clip is None else self.next_clip,
                "reported": sorted({*self.progress.reported, *(reported & self._wanted_metrics)}),
            }
        )

    def _draw(self, members: Collection[str]) -> set[str]:
        """Return those of `members` that take part in this round."""
        participation = self.plan.participation
        return {
            *participation.trainers(self.round_number, members),
            *set(participation.evaluators).intersection(members),
        }

    def _tasks_of(self, envoys: Collection[str]) -> dict[str, list[Task]]:
        """Return the round's tasks by envoy, of those that have any."""
        evaluators = set(self.plan.participation.evaluators)
        tasks = {
            envoy: self.plan.tasks_for_round(self.round_number, trains=envoy not in evaluators)
            for envoy in sorted(envoys)
        }
        return {envoy: tasks[envoy] for envoy in tasks if tasks[envoy]}

    def _sources(self) -> list[tuple[str, Results]]:
        """Return results by envoy, and those of a sum under no name."""
        return [*self.results.items(), ("", self._merged)]

    def _counted(self) -> int:
        if self.summed:
            return len(self.summed.envoys)
        return len(self._clips) if self.trains else len(self.results)

    def _forget_answers(self) -> None:
        self.results = {}
        self.summed, self._merged, self._sum_trained = None, {}, False
        self.refused: dict[str, str] = {}
        # Kept with each answer: looking through all answers at each one takes the square of the number of envoys.
        self._answered: set[str] = set()
        self._silent: set[str] = set()
        self.next_clip: float | None = None
        self._clips: dict[str, int] = {}

    def _has_answered(self, envoy: str) -> bool:
        return envoy in self._answered

    def _mean_metrics(self, task: Task) -> dict[str, float]:
        """Return means over all clips: each envoy's mean weighs as much as it was taken over (see `_weight`).

        A metric that not every envoy reports is the mean over those that do, and so is one that some could not define.
        """
        # In the order of names: a mean must not depend on which answer came first.
        results = [(envoy, result[task.name]) for envoy, result in sorted(self._sources()) if task.name in result]
        values: dict[str, list[tuple[float, int]]] = {}
        for envoy, result in results:
            if self.bounded(envoy, task, result.size) > 0:
                for name, value in self._defined(task, result).items():
                    values.setdefault(name, []).append((value, self._weight(envoy, task, result, name)))
        totals = {name: sum(weight for _, weight in values[name]) for name in sorted(values)}
        return {
            name: sum(value * (weight / total) for value, weight in values[name])
            for name, total in totals.items()
            if total > 0
        }

    def _score(self, metric: str) -> float | None:
        for task in self.plan.tasks:
            if task.validates_global_model:
                return self._mean_metrics(task).get(metric)
        return None


def fault_of(plan: ExperimentPlan, task: Task, result: TaskResult, metric: str) -> str:
    """Return why a metric's value is left out of the mean, or "" if it is not."""
    value, unit = result.metrics[metric], plan.unit_of(task, metric)
    low, high = plan.bounds_of(metric)
    if not math.isfinite(value):
        return "undefined, and left out of the mean"
    if not low <= value <= high:
        return f"outside its bounds {low:g} to {high:g} (see `metric_bounds`), and left out of the mean"
    if unit not in (None, plan.units.get(task.task_type, "clips")) and metric not in result.counts:
        return f"without its number of {unit} (see `MeanOver`), and left out of the mean"
    return ""


def _has_training(tasks: Collection[Task]) -> bool:
    return any(task.task_type == "train" for task in tasks)
