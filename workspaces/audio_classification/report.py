"""The global model at every site, after an experiment: scores, classes, confusions, and their pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openfl_audio.notebook.interactive_api import FLExperiment
from openfl_audio.protocol.plan import VALIDATE, Direction
from openfl_audio.training.history import Record, scores_by_round
from openfl_audio.training.plots import draw_points
from openfl_audio.training.sites import judge_sites, scores_by_site, train_sizes
from workspaces.audio_classification.tasks import confusion

# Cells of a picture that have their values written in them.
MOST_WRITTEN = 150


def read_records(experiment: FLExperiment) -> list[Record]:
    """Return the records of an experiment's rounds, with the metrics of each envoy."""
    messages = experiment.federation.dir_client.stream_history(experiment.experiment_name)
    return [message for message in messages if isinstance(message, dict)]


def report_sites(records: Sequence[Record], best: tuple[str, Direction]) -> dict[str, Any]:
    """Return the scores of each site in the round of the best model, and `judge_sites` of them."""
    metric, direction = best
    scores = scores_by_site(records, metric, best_round(records, best))
    return {"by_site": {site: round(score, 3) for site, score in scores.items()}, **judge_sites(scores, direction)}


def best_round(records: Sequence[Record], best: tuple[str, Direction]) -> int:
    """Return the first round whose global model has the best validation score."""
    scores = scores_by_round(records, best[0])
    choose = max if best[1] == "max" else min
    return choose(scores, key=lambda round_number: scores[round_number])


def recalls_by_site(metrics_by_site: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the share of each class's clips that were recognised, by site; NaN where a site has none of a class."""
    recalls = {}
    for site, metrics in sorted(metrics_by_site.items()):
        number = sum(name.startswith("true/") for name in metrics)
        pairs = [(metrics[f"hit/{i}"], metrics[f"true/{i}"]) for i in range(number)]
        if pairs:
            recalls[site] = [hit / true if true else float("nan") for hit, true in pairs]
    return recalls


def plot_sites(records: Sequence[Record], best: tuple[str, Direction], classes: Sequence[str]) -> Figure:
    """Draw the score of each site by round and, with the best model, by its clips, its classes, and all confusions."""
    metric, number = best[0], best_round(records, best)
    figure, ((by_round, points), (recalls, confused)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    rounds = list(scores_by_round(records, metric))
    scores = {each: scores_by_site(records, metric, each) for each in rounds}
    for site in sorted({site for of_sites in scores.values() for site in of_sites}):
        by_round.plot(rounds, [scores[each].get(site, np.nan) for each in rounds], label=site)
    by_round.axvline(number, color="grey", linestyle=":")
    by_round.set(xlabel="round", ylabel=f"validation {metric}")
    by_round.legend()
    draw_points(points, scores[number], train_sizes(records), metric)
    record = next(record for record in records if record["round"] == number)
    of_sites = {site: tasks.get(VALIDATE, {}) for site, tasks in record["envoys"].items()}
    draw_recalls(recalls, of_sites, classes)
    draw_confusion(confused, record["metrics"][VALIDATE], classes)
    plt.close(figure)
    return figure


def draw_recalls(axes: Axes, metrics_by_site: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> None:
    """Draw the recall of each class at each site; nothing where the targets are numbers."""
    recalls = recalls_by_site(metrics_by_site)
    if recalls:
        _draw_shares(axes, np.array(list(recalls.values())), list(recalls), classes)
    axes.set(title="recall of the best model", xlabel="class", ylabel="site")


def draw_confusion(axes: Axes, metrics: Mapping[str, float], classes: Sequence[str]) -> None:
    """Draw which share of the clips of each class was taken for which, from metrics that have `confusion`."""
    shares = confusion(metrics)
    if len(shares):
        of_class = shares.sum(axis=1, keepdims=True)
        _draw_shares(
            axes, np.divide(shares, of_class, where=of_class > 0, out=np.full_like(shares, np.nan)), *[classes] * 2
        )
    axes.set(title="what clips of a class were taken for", xlabel="taken for", ylabel="class")


def _draw_shares(axes: Axes, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw shares (rows, columns) from 0 to 1 as colours, with their values where there is room; NaN stays white."""
    axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    if shares.size <= MOST_WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                color = "white" if share < 0.5 else "black"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color)
