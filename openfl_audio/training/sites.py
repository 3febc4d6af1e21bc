"""Scores of a model by site or client: how they are spread, and what those get that it serves worst."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from openfl_audio.protocol.plan import TRAIN, VALIDATE, Direction
from openfl_audio.training.bootstrap import bootstrap_interval
from openfl_audio.training.history import Record, scores_by_round

WORST_SHARE = 0.1


def summarize_scores(scores: Mapping[str, float], direction: Direction) -> dict[str, float]:
    """Summarize the scores of sites or clients, each of which counts once, however many clips it has.

    Args:
        scores: of each client that has one; those that are not finite do not count.
        direction: "max" where higher is better, or "min".

    Returns:
        clients, their number; mean; standard_deviation; worst and best; p10, below which (with "min": above which) a
        tenth of the clients are; worst_tenth, the mean of the tenth of the clients, rounded up, that the model serves
        worst. Empty where no client has a score.

    >>> summarize_scores({"a": 0.5, "b": 1.0, "c": 0.75}, "max")["worst_tenth"]
    0.5
    """
    worst_first = sorted(filter(math.isfinite, scores.values()), reverse=direction == "min")
    if not worst_first:
        return {}
    tenth = worst_first[: math.ceil(WORST_SHARE * len(worst_first))]
    return {
        "clients": len(worst_first),
        "mean": float(np.mean(worst_first)),
        "standard_deviation": float(np.std(worst_first)),
        "worst": worst_first[0],
        "best": worst_first[-1],
        "p10": float(np.percentile(worst_first, 100 * (WORST_SHARE if direction == "max" else 1 - WORST_SHARE))),
        "worst_tenth": float(np.mean(tenth)),
    }


def scores_by_site(records: Sequence[Record], metric: str, round_number: int) -> dict[str, float]:
    """Return the validation `metric` of a round at each envoy that has it, by name."""
    record = next(record for record in records if record["round"] == round_number)
    tasks = {envoy: of_envoy.get(VALIDATE, {}) for envoy, of_envoy in record["envoys"].items()}
    return {envoy: metrics[metric] for envoy, metrics in sorted(tasks.items()) if metric in metrics}


def best_round(records: Sequence[Record], best: tuple[str, Direction]) -> int:
    """Return the first round whose global model has the best validation score."""
    scores = scores_by_round(records, best[0])
    choose = max if best[1] == "max" else min
    return choose(scores, key=lambda round_number: scores[round_number])


def train_sizes(records: Sequence[Record]) -> dict[str, float]:
    """Return over how many clips each envoy trained when it last did, by name."""
    return {
        envoy: tasks[TRAIN]["size"]
        for record in records
        for envoy, tasks in sorted(record["envoys"].items())
        if "size" in tasks.get(TRAIN, {})
    }


def gains_of(joined: Mapping[str, float], alone: Mapping[str, float], direction: Direction) -> dict[str, float]:
    """Return by how much the common model is better at each client than its own; a loss that falls is a gain.

    >>> gains_of({"a": 0.75, "b": 0.5, "c": 1.0}, {"a": 0.5, "b": 0.75}, "max")
    {'a': 0.25, 'b': -0.25}
    """
    sign = 1 if direction == "max" else -1
    return {name: sign * (score - alone[name]) for name, score in joined.items() if name in alone}


def summarize_gain(gains: Mapping[str, float]) -> dict[str, float]:
    """Return the mean gain, of two clients or more its 95 % interval over clients, and how many clients profit.

    >>> summarize_gain({"a": 0.25, "b": 0.25, "c": 0.25})
    {'mean': 0.25, 'low': 0.25, 'high': 0.25, 'profit': 3, 'clients': 3}
    """
    if not gains:
        return {}
    values = list(gains.values())
    interval = {}
    if len(values) > 1:
        interval = dict(zip(("low", "high"), bootstrap_interval(values, [1] * len(values)), strict=True))
    counts = {"profit": sum(value > 0 for value in values), "clients": len(values)}
    return {"mean": float(np.mean(values)), **interval, **counts}
