import json
from types import SimpleNamespace

import matplotlib as mpl
import pandas as pd
import pytest

mpl.use("Agg")

from workspaces.keyword_spotting.plots import plot_metrics, plot_shards
from workspaces.keyword_spotting.results import class_counts, write_result


def test_class_counts_come_from_the_shards_descriptions():
    registry = {
        "b": {"shard_info": SimpleNamespace(shard_description="train: {'yes': 2, 'no': 1}")},
        "a": {"shard_info": SimpleNamespace(shard_description="train: {'yes': 3, _silence_: 4}")},
    }
    counts = class_counts(registry)
    assert list(counts) == ["a", "b"]
    assert counts.loc["yes"].tolist() == [3, 2]
    assert counts.loc["_silence_"].tolist() == [4, 0]


def test_result_has_versions_and_leaves_no_temporary_file(tmp_path):
    write_result(tmp_path / "result.json", accuracy={"best": 0.5}, seed=3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["accuracy"] == {"best": 0.5}
    assert result["seed"] == 3
    assert result["versions"]["openfl"] == "1.7.1"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


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
