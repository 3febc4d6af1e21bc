"""Scores of a model by site: the worst one, the 10th percentile, and how far the sites are apart."""

from collections.abc import Mapping, Sequence

import numpy as np

from openfl_audio.protocol.plan import TRAIN, VALIDATE, Direction
from openfl_audio.training.bootstrap import bootstrap_interval
from openfl_audio.training.history import Record, scores_by_round


def judge_sites(scores: Mapping[str, float], direction: Direction) -> dict[str, float]:
    """Summarize the scores of sites, each of which counts once, however many clips it has.

    Args:
        scores: of each site that has one.
        direction: "max" where higher is better, or "min".

    Returns:
        mean; worst, of the site that does worst; p10, below which (with "min": above which) a tenth of the sites are;
        spread, the standard deviation; sites, their number. Empty where no site has a score.

    >>> judge_sites({"a": 0.5, "b": 0.9, "c": 1.0}, "max")
    {'mean': 0.8, 'worst': 0.5, 'p10': 0.58, 'spread': 0.216, 'sites': 3.0}
    """
    if not scores:
        return {}
    values = np.array(list(scores.values()))
    judged = {
        "mean": values.mean(),
        "worst": values.min() if direction == "max" else values.max(),
        "p10": np.percentile(values, 10 if direction == "max" else 90),
        "spread": values.std(),
        "sites": len(values),
    }
    return {name: round(float(value), 3) for name, value in judged.items()}


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
