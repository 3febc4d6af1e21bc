"""Scores of the global model on every client's own validation clips."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from openfl_audio.experiments.modes import Clients
from openfl_audio.protocol.plan import VALIDATE

NO_ROUND = -1  # what a task gets that is called when the rounds are over
Scores = dict[str, dict[str, float]]


def client_scores(clients: Clients, model: torch.nn.Module, device: str) -> Scores:
    """Return the metrics of `model` by client, as the workload's task that validates gives them.

    A client without validation clips is left out.
    """
    keeper = clients.workload.tasks(clients.settings)
    name = keeper.get_registered_tasks()[VALIDATE].function_name
    validate, contract, arguments = keeper.task_registry[name], keeper.task_contract[name], keeper.task_settings[name]
    given: dict[str, Any] = {contract["model"]: model, contract["device"]: device, **arguments}
    if contract["round_num"]:
        given[contract["round_num"]] = NO_ROUND
    scores = {}
    for name in clients.trainers:
        data = clients.workload.data(clients.settings)
        data.shard_descriptor = clients.open(name)
        if data.get_valid_data_size():
            metrics = validate(**given, **{contract["data_loader"]: data.get_valid_loader()})
            scores[name] = {metric: float(value) for metric, value in metrics.items()}
    return scores


def defined(scores: Scores, metric: str) -> dict[str, float]:
    """Return the values of `metric` by client, of those clients that define it."""
    found = {client: metrics[metric] for client, metrics in scores.items() if metric in metrics}
    return {client: value for client, value in found.items() if math.isfinite(value)}


def plot_per_client(scores: Scores, metric: str, summary: Mapping[str, float], path: Path) -> None:
    """Draw the clients' values of `metric` in their order, with the mean and the worst tenth, unless there are none."""
    import matplotlib.pyplot as plt

    values = sorted(defined(scores, metric).values())
    if not values:
        return
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.bar(range(len(values)), values, width=1.0 if len(values) > 30 else 0.8)
    for number, (name, label) in enumerate((("mean", "mean"), ("worst_tenth", "mean of the worst tenth")), start=1):
        axes.axhline(summary[name], color=f"C{number}", linestyle="--", label=f"{label}: {summary[name]:.3f}")
    axes.set(xlabel="clients, in order", ylabel=f"validation {metric}", xticks=[])
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
