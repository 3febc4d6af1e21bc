"""Pictures of a search and of the sites of an experiment, and what pictures of workloads share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from openfl_audio.training.history import name_of_scores, scores_by_round

MOST_NAMED_POINTS = 30
MOST_WRITTEN_VALUES = 150


def count_by_ones(axis: Axis) -> None:
    """Put ticks of an axis at whole numbers only, as it counts rounds, clips or clients."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def save_figure(figure: Figure, path: Path) -> Figure:
    """Write a picture to `path`, and return it. A notebook shows a closed figure once, as the value of its cell."""
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure


def plot_training(axes: Axes, history: pd.DataFrame, loss: str, color: str) -> None:
    """Draw the training loss by round on a second axis of `axes`, whose name is `loss`; of private training epsilon.

    Sites that train privately tell no loss.
    """
    column, label, unit = ("train loss", "training loss", loss)
    if "epsilon" in history:
        column, label, unit = ("epsilon", "epsilon so far", "epsilon")
    other = axes.twinx()
    other.plot(history["round"], history[column], color=color, marker=".", linestyle=":", label=label)
    other.set(ylabel=unit, ylim=(0, None))


def plot_curves(histories: Mapping[str, Sequence[dict[str, Any]]], metric: str, path: Path) -> None:
    """Draw the validation metric by round, where it is defined, a line a trial; `histories` are records by trial."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    shown = name_of_scores([record for records in histories.values() for record in records], metric)
    for name, records in histories.items():
        scores = scores_by_round(records, metric)
        axes.plot(list(scores), list(scores.values()), marker=".", label=name)
    axes.set(xlabel="round", ylabel=f"validation {shown}")
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    save_figure(figure, path)


def plot_heat_map(trials: pd.DataFrame, x: str, y: str, metric: str, path: Path) -> None:
    """Draw the best validation metric over two axes of the search; a star marks a trial that was stopped early."""
    values = trials.pivot_table(index=y, columns=x, values=f"validation {metric}", dropna=False)
    finished = trials.pivot_table(index=y, columns=x, values="finished", aggfunc="min").reindex_like(values)
    figure, axes = plt.subplots(
        figsize=(1.5 + 1.1 * len(values.columns), 1.5 + 0.8 * len(values)), layout="constrained"
    )
    image = axes.imshow(values, origin="lower", aspect="auto")
    middle = (values.min(axis=None) + values.max(axis=None)) / 2
    for row, column in zip(*values.notna().to_numpy().nonzero(), strict=True):
        value, star = values.iloc[row, column], "" if finished.iloc[row, column] else "*"
        color = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.3f}{star}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(values.columns)), values.columns)
    axes.set_yticks(range(len(values)), values.index)
    axes.set(xlabel=x, ylabel=y)
    figure.colorbar(image, label=f"validation {metric}")
    save_figure(figure, path)


def draw_values(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    least: float | None = None,
    largest: float | None = None,
) -> None:
    """Draw values (rows, columns) as colours from `least` to `largest`, written out where there is room.

    NaN stays white.
    """
    image = axes.imshow(values, cmap="viridis", aspect="auto", vmin=least, vmax=largest)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    if values.size <= MOST_WRITTEN_VALUES:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if np.asarray(image.norm(value)) < 0.5 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)


def draw_points(
    axes: Axes,
    scores: Mapping[str, float],
    sizes: Mapping[str, float],
    metric: str,
    alone: Mapping[str, float] | None = None,
) -> None:
    """Draw each site as a point: its score over the clips that it trains on.

    A hollow point is the score of the model that the site trained `alone`, joined to that of the common one by a line.
    """
    for site, score in scores.items():
        size, before = sizes.get(site), (alone or {}).get(site)
        if size is None:
            continue
        if before is not None:
            axes.plot([size, size], [before, score], color="grey", linewidth=0.8, zorder=1)
            axes.scatter([size], [before], facecolors="white", edgecolors="C0")
        axes.scatter([size], [score], color="C0")
        if len(scores) <= MOST_NAMED_POINTS:
            axes.annotate(site, (size, score), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="clips that the site trains on", ylabel=f"validation {metric}")
    axes.grid(alpha=0.3)
