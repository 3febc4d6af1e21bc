"""Pictures of a run and of its corpus."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from openfl_audio.training.history import columns_of
from openfl_audio.training.plots import count_by_ones, plot_training, save_figure

# Scores in [0, 1], with what they are called and their colours.
SCORES = {"pr_auc": ("PR-AUC", "C0"), "mAP": ("mAP", "C2"), "lwlrap": ("lwlrap", "C3")}
# More names than this cannot be read below each other.
MOST_NAMES = 60


def count_clips(labels: np.ndarray, uploaders: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """Count the clips of each class (rows) and uploader (columns), both from the most clips to the fewest.

    `labels` (clips, classes) are 0 or 1, `uploaders` are those of the clips. A clip counts for each of its classes.
    """
    counts = pd.DataFrame(labels, columns=list(classes)).groupby(np.asarray(uploaders)).sum().T.astype(int)
    by_class = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
    by_uploader = pd.Series(uploaders).value_counts().index
    return counts.loc[by_class, by_uploader]


def plot_scores(history: pd.DataFrame, path: Path) -> Figure:
    """Draw validation PR-AUC, mAP and lwlrap, and loss or epsilon by round; a mean of sites is labelled as one."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for metric, (name, color) in SCORES.items():
        for column in columns_of(history, metric):
            scores = history[["round", column]].dropna()
            label = f"validation {column.replace(metric, name)}"
            axes.plot(scores["round"], scores[column], color=color, marker=".", label=label)
    axes.set(xlabel="round", ylabel="PR-AUC, mAP, lwlrap", ylim=(0, 1))
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    plot_training(axes, history, "binary cross-entropy (nats)", "C1")
    figure.legend(loc="outside upper center", ncols=2)
    return save_figure(figure, path)


def plot_clips_per_class(counts: pd.DataFrame, path: Path) -> Figure:
    """Draw the training clips of each class, of `count_clips`."""
    clips = counts.sum(axis=1)
    named = len(clips) <= MOST_NAMES
    # Names are long: each has a line, from the top.
    figure, axes = plt.subplots(figsize=(8, 1 + 0.2 * len(clips)) if named else (8, 4), layout="constrained")
    if named:
        axes.barh(clips.index, clips)
        axes.invert_yaxis()
        axes.margins(y=0.01)
    else:
        axes.bar(np.arange(len(clips)), clips, width=1.0)
    axes.set(xlabel="training clips" if named else "class", ylabel="" if named else "training clips")
    count_by_ones(axes.xaxis if named else axes.yaxis)
    if not named:
        count_by_ones(axes.xaxis)
    axes.set_title(f"{len(clips)} classes, median {clips.median():,.0f} clips")
    axes.grid(axis="x" if named else "y", alpha=0.3)
    return save_figure(figure, path)


def plot_clips_per_uploader(uploaders: Sequence[str], uploader_min: int, path: Path) -> Figure:
    """Draw the training clips of each uploader, from the most on, on logarithmic axes; `uploaders` of the clips."""
    clips = pd.Series(uploaders).value_counts().to_numpy()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.loglog(np.arange(1, len(clips) + 1), clips, marker=".", linestyle="none")
    if uploader_min > 1:
        enough = np.sum(clips >= uploader_min)
        axes.axhline(uploader_min, color="C1", linestyle="--", label=f"{uploader_min} clips or more: {enough}")
        axes.legend()
    axes.set(xlabel="rank of the uploader", ylabel="training clips")
    for axis in (axes.xaxis, axes.yaxis):
        # 100 instead of 10 to the power of 2.
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
    axes.set_title(f"{len(clips):,} uploaders, {clips.sum():,} clips; the first has {clips[0] / clips.sum():.0%}")
    axes.grid(alpha=0.3, which="both")
    return save_figure(figure, path)


def plot_class_by_uploader(counts: pd.DataFrame, path: Path) -> Figure:
    """Draw training clips by class and uploader, of `count_clips`, as colours on a logarithmic scale; none is white."""
    figure, axes = plt.subplots(figsize=(9, min(3 + 0.2 * len(counts), 10)), layout="constrained")
    values = counts.to_numpy(dtype=float)
    image = axes.imshow(
        np.where(values > 0, values, np.nan),
        norm=LogNorm(1, max(values.max(), 2)),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
    )
    for axis, names, noun in ((axes.yaxis, counts.index, "class"), (axes.xaxis, counts.columns, "uploader")):
        if len(names) <= MOST_NAMES:
            axis.set_ticks(np.arange(len(names)), names)
        else:
            count_by_ones(axis)
        axis.set_label_text(noun)
    axes.tick_params(axis="x", rotation=90)
    share = np.mean(values > 0)
    axes.set_title(f"{len(counts)} classes by {counts.shape[1]:,} uploaders: {share:.1%} of the pairs have clips")
    figure.colorbar(image, label="training clips", format=LogFormatter())
    return save_figure(figure, path)
