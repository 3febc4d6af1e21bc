"""The rounds of one experiment: who has which task, what came back, and the next global model.

No sockets and no clock of its own, so that whoever has updates can drive it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from federation.plan import ExperimentPlan, Task
from federation.wire import Tensors


class UpdateRefusedError(ValueError):
    """An update that must not count. The message names the envoy and what is wrong."""


@dataclass(frozen=True)
class TaskResult:
    """What one envoy says of one task: over how many clips, and the metrics' means over them."""

    size: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Update:
    """One envoy's answer to one round. `tensors` are its trained weights, empty in a round without training."""

    envoy: str
    round_number: int
    results: dict[str, TaskResult]
    tensors: Tensors = field(repr=False)


class Rounds:
    """Folds updates into a running weighted sum, so memory does not grow with the number of envoys."""

    def __init__(self, plan: ExperimentPlan, model: Tensors) -> None:
        self.plan = plan
        self.model = model
        self.round_number = 0
        self.best_score: float | None = None
        self._open_round()

    @property
    def finished(self) -> bool:
        # One round more than asked for: it only validates the last model.
        return self.round_number > self.plan.rounds

    @property
    def complete(self) -> bool:
        """Everybody who was asked has answered."""
        return not self.finished and len(self._results) == len(self.plan.envoys)

    def tasks_for(self, envoy: str) -> list[Task]:
        """What `envoy` has still to do in this round; nothing when it has answered."""
        if self.finished or envoy not in self.plan.envoys or envoy in self._results:
            return []
        return self.plan.tasks_for_round(self.round_number)

    def add(self, update: Update) -> None:
        """Count `update`. A repeated one is dropped (its sender could not know that it had arrived).

        Raises UpdateRefusedError for one that must not count; the round is then as it was before.
        """
        if update.envoy in self._results or update.round_number < self.round_number:
            return
        trained = self._check(update)
        if trained is not None:
            for name, tensor in update.tensors.items():
                if np.issubdtype(tensor.dtype, np.floating):
                    # float64: the sum must not depend on the order in which envoys answer.
                    self._sums[name] = self._sums.get(name, 0) + tensor.astype(np.float64) * trained.size
                else:
                    # Counters, such as a batch norm's number of batches.
                    self._sums[name] = np.maximum(self._sums.get(name, tensor), tensor)
            self._total_size += trained.size
        self._results[update.envoy] = update.results

    def record(self) -> dict[str, Any]:
        """What to remember of the round: means of metrics over all clips, and what each envoy said.

        Validation metrics are those of the model the round began with; `best` says whether it is the best so far.
        """
        return {
            "round": self.round_number,
            "best": self.plan.best.is_better(self._score(), self.best_score),
            "metrics": {
                task.name: self._mean_metrics(task.name) for task in self.plan.tasks_for_round(self.round_number)
            },
            "envoys": {
                envoy: {task: {"size": result.size, **result.metrics} for task, result in results.items()}
                for envoy, results in sorted(self._results.items())
            },
        }

    def close(self) -> None:
        """End the round: step to the next global model."""
        if self.plan.best.is_better(self._score(), self.best_score):
            self.best_score = self._score()
        if self._total_size:
            self.model = {name: self._next_value(name) for name in self.model}
        self.round_number += 1
        self._open_round()

    def _open_round(self) -> None:
        self._results: dict[str, dict[str, TaskResult]] = {}
        self._sums: Tensors = {}
        self._total_size = 0

    def _next_value(self, name: str) -> np.ndarray:
        dtype = self.model[name].dtype
        total = self._sums[name]
        return (total / self._total_size).astype(dtype) if np.issubdtype(dtype, np.floating) else total.astype(dtype)

    def _mean_metrics(self, task: str) -> dict[str, float]:
        """Means over all clips: each envoy's mean weighs as many clips as it was taken over.

        A metric that not every envoy reports is the mean over those that do.
        """
        results = [result[task] for result in self._results.values() if task in result and result[task].size > 0]
        means = {}
        for name in sorted({name for result in results for name in result.metrics}):
            reported = [(result.metrics[name], result.size) for result in results if name in result.metrics]
            means[name] = sum(value * size for value, size in reported) / sum(size for _, size in reported)
        return means

    def _score(self) -> float | None:
        for task in self.plan.tasks_for_round(self.round_number):
            if task.task_type == "validate" and not task.apply_local:
                return self._mean_metrics(task.name).get(self.plan.best.metric)
        return None

    def _check(self, update: Update) -> TaskResult | None:
        """The training result of `update`, if the round trains. Raises UpdateRefusedError."""
        tasks = {task.name: task for task in self.tasks_for(update.envoy)}
        refuse = f"update of envoy '{update.envoy}' for round {update.round_number}"
        if update.round_number != self.round_number or not tasks:
            raise UpdateRefusedError(
                f"{refuse}: round {self.round_number} asks for {sorted(tasks) or 'nothing'} from it"
            )
        if update.results.keys() != tasks.keys():
            raise UpdateRefusedError(f"{refuse}: has results of {sorted(update.results)}, asked for {sorted(tasks)}")
        for name, result in update.results.items():
            if result.size < 0 or not all(np.isfinite(value) for value in result.metrics.values()):
                raise UpdateRefusedError(
                    f"{refuse}: task '{name}' reports size {result.size}, metrics {result.metrics}"
                )
        trained = [update.results[task.name] for task in tasks.values() if task.task_type == "train"]
        if not trained:
            return None
        if trained[0].size == 0:
            raise UpdateRefusedError(f"{refuse}: trained on 0 clips")
        self._check_tensors(update.tensors, refuse)
        return trained[0]

    def _check_tensors(self, tensors: Tensors, refuse: str) -> None:
        missing, extra = self.model.keys() - tensors.keys(), tensors.keys() - self.model.keys()
        if missing or extra:
            raise UpdateRefusedError(f"{refuse}: tensors missing {sorted(missing)[:3]}, unknown {sorted(extra)[:3]}")
        for name, tensor in tensors.items():
            if tensor.shape != self.model[name].shape or tensor.dtype != self.model[name].dtype:
                expected = f"{self.model[name].dtype}{self.model[name].shape}"
                raise UpdateRefusedError(f"{refuse}: tensor '{name}' is {tensor.dtype}{tensor.shape}, not {expected}")
            if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
                raise UpdateRefusedError(f"{refuse}: tensor '{name}' holds NaN or infinity")
