"""Pictures of a run, as in Tzinis et al., "Separate but together" (FedEnhance), arXiv 2105.04727."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from openfl_audio.training.plots import count_by_ones, save_figure

ROUNDS_PER_POINT = 10
# Runs of fewer rounds are drawn round by round: tens of them would be a handful of points, or a single one.
FEWEST_ROUNDS_IN_TENS = 50
LABELS = {"si_sdri_1_noise": "1 noise", "si_sdri_2_noises": "2 noises"}
HATCHES = ("xx", "//", "..", "oo")


def plot_si_sdri(
    curves: Mapping[str, pd.Series], path: Path, bound: float | None = None, title: str | None = None
) -> Figure:
    """Draw the SI-SDR improvement in dB by round.

    From 50 rounds on the axis is logarithmic, and a point is the mean of ten rounds in a band of their extremes; in a
    shorter run each round is a point.

    `curves` has a series for each label, with the round as its index, such as
    `history.set_index("round")["si_sdri_2_noises"]`; rounds that did not validate are left out. `bound`, in dB, is a
    dashed line: what centralized training reaches.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    in_tens = max(len(curve) for curve in curves.values()) >= FEWEST_ROUNDS_IN_TENS
    for label, curve in curves.items():
        points = group_rounds(curve, ROUNDS_PER_POINT if in_tens else 1)
        (line,) = axes.plot(points.index, points["mean"], marker=".", label=label)
        axes.fill_between(points.index, points["min"], points["max"], color=line.get_color(), alpha=0.25, linewidth=0)
    if bound is not None:
        axes.axhline(bound, color="black", linestyle="--", linewidth=2, label=f"centralized: {bound:.1f} dB")
    if in_tens:
        axes.set_xscale("log")
        # 100 instead of 10 to the power of 2.
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter())
    else:
        count_by_ones(axes.xaxis)
    axes.set(xlabel="round, from 1", ylabel="SI-SDR improvement (dB)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, path)


def group_rounds(curve: pd.Series, size: int) -> pd.DataFrame:
    """Return `mean`, `min` and `max` of rounds 0 to `size` - 1, and so on; the index is the first one, from 1.

    >>> group_rounds(pd.Series([1.0, 3.0, 5.0], index=[0, 9, 10]), 10).loc[1].tolist()
    [2.0, 1.0, 3.0]
    """
    curve = curve.dropna()
    points = curve.groupby(curve.index.to_numpy() // size).agg(["mean", "min", "max"])
    return points.set_index(points.index * size + 1)


def plot_supervised_share(scores: pd.DataFrame, path: Path) -> Figure:
    """Draw the SI-SDR improvement over the share of supervised clients: a group for each row, a bar for each column.

    `scores` in dB has the shares, from 0 to 1, as its index, and columns such as "validation, 1 noise".
    """
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    width = 0.8 / len(scores.columns)
    centres = np.arange(len(scores))
    for i, column in enumerate(scores):
        offset = (i - (len(scores.columns) - 1) / 2) * width
        hatch = HATCHES[i % len(HATCHES)]
        axes.bar(centres + offset, scores[column], width, label=column, hatch=hatch, edgecolor="black", linewidth=0.6)
    axes.set_xticks(centres, [f"{share:.0%}" for share in scores.index])
    axes.set(xlabel="supervised clients", ylabel="SI-SDR improvement (dB)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(ncols=2, fontsize=8)
    return save_figure(figure, path)


def plot_spectrograms(signals: Mapping[str, np.ndarray], sample_rate: int, path: Path) -> Figure:
    """Draw waveforms (samples,) side by side, in dB on one scale of 80 dB below the loudest."""
    figure, grid = plt.subplots(
        1, len(signals), figsize=(4 * len(signals), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    images = []
    for axes, (name, signal) in zip(grid[0], signals.items(), strict=True):
        with np.errstate(divide="ignore"):  # digital silence has no level, and no colour
            images.append(axes.specgram(signal, NFFT=512, Fs=sample_rate, noverlap=384)[3])
        axes.set(title=name, xlabel="time (s)")
    loudest = max(image.get_array().max() for image in images)
    for image in images:
        image.set_clim(loudest - 80, loudest)
    grid[0, 0].set(ylabel="frequency (Hz)")
    figure.colorbar(images[0], ax=grid[0], label="dB")
    return save_figure(figure, path)


def plot_clips_per_client(counts: np.ndarray, supervised: Sequence[bool], path: Path) -> Figure:
    """Draw the training clips of each client; `counts` (clients,). Supervised clients have a colour of their own."""
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    colours = np.where(supervised, "C1", "C0")
    axes.bar(np.arange(len(counts)), counts, width=1.0, color=colours, edgecolor="white", linewidth=0.3)
    title = f"{len(counts)} clients, {int(np.sum(supervised))} of them supervised, {counts.sum():,} clips"
    axes.set(xlabel="client", ylabel="training clips", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        count_by_ones(axis)
    return save_figure(figure, path)
