"""The global model at every site, after an experiment: scores, classes, confusions, and their pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openfl_audio.protocol.plan import VALIDATE, Direction
from openfl_audio.training.history import Record, scores_by_round
from openfl_audio.training.plots import draw_points, draw_values, save_figure
from openfl_audio.training.sites import (
    best_round,
    gains_of,
    scores_by_site,
    summarize_gain,
    summarize_scores,
    train_sizes,
)
from workspaces.audio_classification.tasks import confusion, shares_by_class


def report_sites(
    records: Sequence[Record], best: tuple[str, Direction], alone: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the scores of each site in the round of the best model, and `summarize_scores` of them.

    With the scores of the sites that trained `alone`, `gain` says by how much the common model is better at each, and
    at how many it is.
    """
    metric, direction = best
    scores = scores_by_site(records, metric, best_round(records, best))
    summary = {name: round(value, 3) for name, value in summarize_scores(scores, direction).items()}
    report = {"by_site": {site: round(score, 3) for site, score in scores.items()}, **summary}
    if alone:
        gains = gains_of(scores, alone, direction)
        report["gain"] = {"by_site": {site: round(gain, 3) for site, gain in gains.items()}, **summarize_gain(gains)}
    return report


def recalls_by_site(metrics_by_site: Mapping[str, Mapping[str, float]], number: int) -> dict[str, list[float]]:
    """Return the share of each class's clips that were recognised, by site.

    It is NaN where a site has none of a class, or tells nothing of it. There are `number` classes.
    """
    recalls = {}
    for site, metrics in sorted(metrics_by_site.items()):
        true, hit = shares_by_class(metrics, "true"), shares_by_class(metrics, "hit")
        if true:
            recalls[site] = [hit[i] / true[i] if true.get(i) else float("nan") for i in range(number)]
    return recalls


def plot_sites(
    records: Sequence[Record],
    best: tuple[str, Direction],
    classes: Sequence[str],
    alone: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the score of each site by round and, with the best model, by its clips, its classes, and all confusions.

    Hollow points are the scores of sites that trained `alone`.
    """
    metric, number = best[0], best_round(records, best)
    figure, ((by_round, points), (recalls, confused)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    rounds = list(scores_by_round(records, metric))
    scores = {each: scores_by_site(records, metric, each) for each in rounds}
    for site in sorted({site for of_sites in scores.values() for site in of_sites}):
        by_round.plot(rounds, [scores[each].get(site, np.nan) for each in rounds], label=site)
    by_round.axvline(number, color="grey", linestyle=":")
    by_round.set(xlabel="round", ylabel=f"validation {metric}")
    by_round.legend()
    draw_points(points, scores[number], train_sizes(records), metric, alone)
    record = next(record for record in records if record["round"] == number)
    of_sites = {site: tasks.get(VALIDATE, {}) for site, tasks in record["envoys"].items()}
    draw_recalls(recalls, of_sites, classes)
    draw_confusion(confused, record["metrics"][VALIDATE], classes)
    plt.close(figure)
    return figure


def plot_confusions(records: Sequence[Record], best: tuple[str, Direction], classes: Sequence[str], path: Path) -> None:
    """Draw what clips of each class were taken for by the best model; nothing where no pairs of classes are told."""
    number = best_round(records, best)
    record = next(record for record in records if record["round"] == number)
    if len(confusion(record["metrics"][VALIDATE], len(classes))):
        figure, axes = _square(len(classes), len(classes))
        draw_confusion(axes, record["metrics"][VALIDATE], classes)
        save_figure(figure, path)


def plot_recalls(scores: Mapping[str, Mapping[str, float]], classes: Sequence[str], path: Path) -> None:
    """Draw the recall of each class at each client, given its metrics by name; nothing where there are no classes."""
    if recalls_by_site(scores, len(classes)):
        figure, axes = _square(len(scores), len(classes))
        draw_recalls(axes, scores, classes)
        save_figure(figure, path)


def _square(rows: int, columns: int) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(3 + 0.5 * min(columns, 40), 2 + 0.4 * min(rows, 40)), layout="constrained")


def draw_recalls(axes: Axes, metrics_by_site: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> None:
    """Draw the recall of each class at each site; nothing where the targets are numbers."""
    recalls = recalls_by_site(metrics_by_site, len(classes))
    if recalls:
        draw_values(axes, np.array(list(recalls.values())), list(recalls), classes, 0, 1)
    axes.set(title="recall of the best model", xlabel="class", ylabel="site")


def draw_confusion(axes: Axes, metrics: Mapping[str, float], classes: Sequence[str]) -> None:
    """Draw which share of the clips of each class was taken for which, from metrics that have `confusion`."""
    shares = confusion(metrics, len(classes))
    if len(shares):
        true = shares_by_class(metrics, "true")
        of_class = np.array([[true.get(i, 0.0)] for i in range(len(classes))])
        values = np.divide(shares, of_class, where=of_class > 0, out=np.full_like(shares, np.nan))
        draw_values(axes, values, classes, classes, 0, 1)
    axes.set(title="what clips of a class were taken for", xlabel="taken for", ylabel="class")
