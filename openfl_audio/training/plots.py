"""Pictures of a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from openfl_audio.training.history import scores_by_round


def plot_curves(histories: Mapping[str, Sequence[dict[str, Any]]], metric: str, path: Path) -> None:
    """Draw the validation metric by round, where it is defined, a line a trial; `histories` are records by trial."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, records in histories.items():
        scores = scores_by_round(records, metric)
        axes.plot(list(scores), list(scores.values()), marker=".", label=name)
    axes.set(xlabel="round", ylabel=f"validation {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
    figure.savefig(path, dpi=120)
    plt.close(figure)
