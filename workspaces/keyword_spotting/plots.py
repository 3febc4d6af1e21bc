"""Pictures of a run."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from openfl_audio.training.plots import count_by_ones, plot_training, save_figure


def plot_metrics(history: pd.DataFrame, alone: pd.DataFrame, test_accuracy: dict[str, float], path: Path) -> Figure:
    """Draw loss and accuracy by round, of all envoys and of one alone; dots are those on unseen speakers."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    loss.plot(
        history["round"], history["train loss"], color="C0", marker=".", linestyle=":", label="all envoys, training"
    )
    for name, frame, color in (
        ("all envoys, validation", history, "C0"),
        ("one envoy alone, its own validation", alone, "C1"),
    ):
        loss.plot(frame["round"], frame["loss"], color=color, marker=".", label=name)
        accuracy.plot(frame["round"], frame["accuracy"], color=color, marker=".", label=name)
    best = history["accuracy"].idxmax()
    for name, at, color in (
        ("initial", 0, "C7"),
        ("best", history["round"][best], "C2"),
        ("last", history["round"].iloc[-1], "C3"),
        ("alone", alone["round"][alone["accuracy"].idxmax()], "C1"),
    ):
        if name in test_accuracy:
            label = f"{name}, test: {test_accuracy[name]:.3f}"
            accuracy.scatter(at, test_accuracy[name], color=color, zorder=3, label=label)
    loss.set(xlabel="round", ylabel="cross-entropy (nats)", ylim=(0, None))
    accuracy.set(xlabel="round", ylabel="accuracy", ylim=(0, 1))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        count_by_ones(axes.xaxis)
        axes.legend(fontsize=8)
    return save_figure(figure, path)


def plot_shards(counts: pd.DataFrame, path: Path) -> Figure:
    """Draw the training clips per class (rows) and envoy (columns of `counts`)."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    bottom = np.zeros(len(counts))
    for envoy in counts:
        axes.bar(counts.index, counts[envoy], bottom=bottom, label=f"{envoy}: {counts[envoy].sum()} clips")
        bottom += counts[envoy].to_numpy()
    axes.set(ylabel="training clips")
    count_by_ones(axes.yaxis)
    axes.tick_params(axis="x", rotation=45)
    axes.legend()
    return save_figure(figure, path)


def plot_accuracy(history: pd.DataFrame, path: Path) -> Figure:
    """Draw validation accuracy by round, and training loss, or epsilon where privacy lets no loss leave."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    validated = history.dropna(subset=["accuracy"])
    axes.plot(validated["round"], validated["accuracy"], color="C0", marker=".", label="validation accuracy")
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0, 1))
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    plot_training(axes, history, "cross-entropy (nats)", "C1")
    figure.legend(loc="outside upper center", ncols=2)
    return save_figure(figure, path)


def plot_clips_per_client(counts: np.ndarray, path: Path) -> Figure:
    """Draw the training clips of each client; `counts` (clients,)."""
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    axes.bar(np.arange(len(counts)), counts, width=1.0, edgecolor="white", linewidth=0.3)
    axes.axhline(counts.mean(), color="C1", linestyle="--", label=f"mean: {counts.mean():.0f} clips")
    axes.set(xlabel="client", ylabel="training clips", title=f"{len(counts)} clients, {counts.sum():,} clips")
    for axis in (axes.xaxis, axes.yaxis):
        count_by_ones(axis)
    axes.legend()
    return save_figure(figure, path)


def class_counts(registry: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Return training clips per class (rows) and envoy (columns), as envoys that serve SUPERB describe their shards."""
    descriptions = {name: yaml.safe_load(envoy["shard_info"].shard_description) for name, envoy in registry.items()}
    counts = {name: each["train"] for name, each in sorted(descriptions.items()) if _serves_superb(each)}
    return pd.DataFrame(counts).fillna(0).astype(int)


def _serves_superb(description: Any) -> bool:
    return isinstance(description, dict) and description.get("corpus") == "superb"
