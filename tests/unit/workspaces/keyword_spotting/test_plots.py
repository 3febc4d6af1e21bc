from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from openfl_audio.training.history import to_frame
from workspaces.keyword_spotting.plots import (
    class_counts,
    plot_accuracy,
    plot_clips_per_client,
    plot_metrics,
    plot_shards,
)


def test_class_counts_come_from_the_shards_descriptions():
    registry = {
        "b": {"shard_info": SimpleNamespace(shard_description="{corpus: superb, train: {'yes': 2, 'no': 1}}")},
        "a": {"shard_info": SimpleNamespace(shard_description="{corpus: superb, train: {'yes': 3, _silence_: 4}}")},
        "other corpus": {"shard_info": SimpleNamespace(shard_description="{corpus: fsd50k, train: 5}")},
        "no YAML object": {"shard_info": SimpleNamespace(shard_description="5 points")},
    }
    counts = class_counts(registry)
    assert list(counts) == ["a", "b"]
    assert counts.loc["yes"].tolist() == [3, 2]
    assert counts.loc["_silence_"].tolist() == [4, 0]


def test_plots_show_what_they_are_given(tmp_path):
    history = pd.DataFrame(
        {"round": [0, 1, 2], "loss": [3.0, 2.0, 2.5], "accuracy": [0.1, 0.6, 0.4], "train loss": [3, 2, None]}
    )
    accuracy = {"initial": 0.1, "best": 0.55, "last": 0.45, "alone": 0.3}
    loss_axes, accuracy_axes = plot_metrics(history, history, accuracy, tmp_path / "metrics.png").axes
    dots = {text.get_text() for text in accuracy_axes.get_legend().get_texts()}
    assert {"best, test: 0.550", "alone, test: 0.300"} <= dots
    assert accuracy_axes.collections[1].get_offsets()[0].tolist() == pytest.approx([1, 0.55])
    assert loss_axes.get_ylim()[0] == 0

    counts = pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=["yes", "no"])
    axes = plot_shards(counts, tmp_path / "shards.png").axes[0]
    assert max(bar.get_y() + bar.get_height() for bar in axes.patches) == 6
    assert (tmp_path / "metrics.png").stat().st_size > 1000
    assert (tmp_path / "shards.png").stat().st_size > 1000


def test_curves_have_the_rounds_that_validated_and_bars_every_client(tmp_path):
    validate, seconds = "aggregated_model_validate", {"seconds": 1.0, "bytes_up": 0}
    records = [
        {"round": 0, "metrics": {validate: {"accuracy": 0.1}, "train": {"loss": 2.0}}, **seconds},
        {"round": 1, "metrics": {"train": {"loss": 1.0}}, **seconds},
        {"round": 2, "metrics": {validate: {"accuracy": 0.5}}, **seconds},
    ]
    accuracy, loss = plot_accuracy(to_frame(records), tmp_path / "accuracy.png").axes
    assert accuracy.lines[0].get_xydata().tolist() == [[0, 0.1], [2, 0.5]]
    assert loss.lines[0].get_ydata().tolist()[:2] == [2.0, 1.0]
    bars = plot_clips_per_client(np.array([3, 1, 2]), tmp_path / "clips.png").axes[0]
    assert [bar.get_height() for bar in bars.patches] == [3, 1, 2]


@pytest.mark.parametrize("counts", [[1], [1, 1], [1, 2, 1]])
def test_clients_clips_and_rounds_are_whole_numbers(tmp_path, counts):
    clips = plot_clips_per_client(np.array(counts), tmp_path / "clips.png").axes[0]
    shards = plot_shards(pd.DataFrame({"a": counts}), tmp_path / "shards.png").axes[0]
    for axis in (clips.xaxis, clips.yaxis, shards.yaxis):
        assert all(tick == round(tick) for tick in axis.get_majorticklocs()), axis.get_majorticklocs()


def test_the_curve_of_one_round_is_a_dot_at_a_whole_number(tmp_path):
    history = pd.DataFrame({"round": [0], "accuracy": [0.3], "train loss": [2.0]})
    accuracy, loss = plot_accuracy(history, tmp_path / "accuracy.png").axes
    assert [line.get_marker() for axes in (accuracy, loss) for line in axes.lines] == [".", "."]
    assert all(tick == round(tick) for tick in accuracy.xaxis.get_majorticklocs())


def test_pictures_are_closed_so_that_a_notebook_shows_each_once(tmp_path):
    plot_clips_per_client(np.array([3]), tmp_path / "clips.png")
    plot_shards(pd.DataFrame({"a": [1]}), tmp_path / "shards.png")
    assert not plt.get_fignums()
