"""Pictures of a run."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from openfl_audio.training.history import columns_of
from openfl_audio.training.plots import count_by_ones, save_figure

NAMES = {
    "masked_accuracy": "accuracy, masked",
    "unmasked_accuracy": "accuracy, not masked",
    "most_frequent_accuracy": "most frequent cluster",
    "loss": "validation loss",
}
BESIDE = {"masked_accuracy": ("unmasked_accuracy", "most_frequent_accuracy")}


def plot_progress(history: pd.DataFrame, metric: str, path: Path) -> Figure:
    """Draw the validation of `metric`, with what belongs beside it, and the training loss by round."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, name in enumerate((metric, *BESIDE.get(metric, ()))):
        style = "--" if name == "most_frequent_accuracy" else "-"
        # A metric that no round could define has no column.
        for column in columns_of(history, name):
            validated = history[["round", column]].dropna()
            axes.plot(
                validated["round"],
                validated[column],
                color=f"C{number}",
                marker=".",
                linestyle=style,
                label=column.replace(name, NAMES[name]),
            )
    axes.set(xlabel="round", ylabel=metric.replace("_", " "), ylim=(0, None))
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    loss = axes.twinx()
    loss.plot(history["round"], history["train loss"], color="C7", marker=".", linestyle=":", label="training loss")
    loss.set(ylabel="training loss", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return save_figure(figure, path)


def plot_masked_accuracy(histories: Mapping[str, pd.DataFrame], path: Path) -> Figure:
    """Draw the masked accuracy of several runs by round, above what the most frequent cluster would give."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, history in histories.items():
        validated = history.dropna(subset=["masked_accuracy"])
        axes.plot(validated["round"], validated["masked_accuracy"], marker=".", label=name)
    together = pd.concat(histories.values())
    for column in columns_of(together, "most_frequent_accuracy"):
        label = column.replace("most_frequent_accuracy", NAMES["most_frequent_accuracy"])
        axes.axhline(together[column].mean(), color="black", linestyle="--", label=label)
    axes.set(xlabel="round", ylabel=NAMES["masked_accuracy"], ylim=(0, None))
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def plot_hours_per_client(hours: np.ndarray, path: Path) -> Figure:
    """Draw the hours of training clips of each client; `hours` (clients,)."""
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    axes.bar(np.arange(1, len(hours) + 1), hours)
    axes.axhline(hours.mean(), color="C1", linestyle="--", label=f"mean: {hours.mean():.3g} h")
    axes.set(xlabel="client", ylabel="hours to train on", title=f"{len(hours)} clients, {hours.sum():.3g} h")
    count_by_ones(axes.xaxis)
    axes.legend()
    return save_figure(figure, path)
