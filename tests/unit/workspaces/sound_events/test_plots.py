import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from openfl_audio.training.history import to_frame
from workspaces.sound_events.plots import (
    count_clips,
    plot_class_by_uploader,
    plot_clips_per_class,
    plot_clips_per_uploader,
    plot_scores,
)

# Six clips of three uploaders; the second clip has two classes, and no clip has the last class.
LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
UPLOADERS = ["rare", "most", "most", "some", "most", "some"]
CLASSES = ["Dog", "Rain", "Bell"]


@pytest.fixture
def counts():
    return count_clips(LABELS, UPLOADERS, CLASSES)


def test_clips_are_counted_by_class_and_uploader_from_the_most_on(counts):
    assert list(counts.index) == ["Dog", "Rain", "Bell"]
    assert list(counts.columns) == ["most", "some", "rare"]
    assert counts.to_numpy().tolist() == [[2, 1, 1], [2, 1, 0], [0, 0, 0]]


def test_curves_have_the_rounds_that_validated(tmp_path):
    validate, seconds = "aggregated_model_validate", {"seconds": 1.0, "bytes_up": 0}
    records = [
        {"round": 0, "metrics": {validate: {"pr_auc": 0.1, "mAP": 0.2}, "train": {"loss": 2.0}}, **seconds},
        {"round": 1, "metrics": {"train": {"loss": 1.0}}, **seconds},
        {"round": 2, "metrics": {validate: {"pr_auc": 0.5, "mAP": 0.4}}, **seconds},
    ]
    scores, loss = plot_scores(to_frame(records), tmp_path / "scores.png").axes
    assert [line.get_xydata().tolist() for line in scores.lines] == [[[0, 0.1], [2, 0.5]], [[0, 0.2], [2, 0.4]]]
    assert loss.lines[0].get_ydata().tolist()[:2] == [2.0, 1.0]
    assert (tmp_path / "scores.png").stat().st_size > 1_000


def test_private_training_has_epsilon_in_place_of_a_loss(tmp_path):
    metrics = {"aggregated_model_validate": {"pr_auc": 0.1}, "train": {}}
    privacy = {"unit": "record", "delta": 1e-5, "epsilon": {"a": 2.5, "b": 2.0}}
    record = {"round": 0, "metrics": metrics, "privacy": privacy, "seconds": 1.0, "bytes_up": 0}
    _, spent = plot_scores(to_frame([record]), tmp_path / "scores.png").axes
    assert spent.get_ylabel() == "epsilon"
    assert spent.lines[0].get_ydata().tolist() == [2.5]


def test_means_of_sites_are_drawn_as_such_beside_scores_that_merge(tmp_path):
    validate = "aggregated_model_validate"
    metrics = {validate: {"pr_auc": 0.1, "lwlrap": 0.3}, "train": {"loss": 2.0}}
    record = {"round": 0, "metrics": metrics, "means_of_sites": {validate: ["pr_auc"]}, "seconds": 1.0, "bytes_up": 0}
    scores, _ = plot_scores(to_frame([record]), tmp_path / "scores.png").axes
    labels = {line.get_label(): line.get_ydata().tolist() for line in scores.lines}
    assert labels == {"validation PR-AUC (mean of sites)": [0.1], "validation lwlrap": [0.3]}


def test_bars_dots_and_colours_are_the_counts(counts, tmp_path):
    bars = plot_clips_per_class(counts, tmp_path / "classes.png").axes[0]
    assert [bar.get_width() for bar in bars.patches] == [4, 3, 0]
    assert [text.get_text() for text in bars.get_yticklabels()] == CLASSES

    dots = plot_clips_per_uploader(UPLOADERS, 2, tmp_path / "uploaders.png").axes[0]
    assert (dots.get_xscale(), dots.get_yscale()) == ("log", "log")
    assert dots.lines[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert dots.get_legend().get_texts()[0].get_text() == "2 clips or more: 2"

    colours = plot_class_by_uploader(counts, tmp_path / "pairs.png").axes[0]
    np.testing.assert_array_equal(colours.images[0].get_array().filled(0), counts)
    assert [text.get_text() for text in colours.get_xticklabels()] == ["most", "some", "rare"]
    assert "55.6% of the pairs" in colours.get_title()


def test_two_hundred_classes_and_a_thousand_uploaders_fit(tmp_path):
    generator = np.random.default_rng(0)
    labels = (generator.random((3_000, 200)) < 0.01).astype(np.float32)
    uploaders = [f"u{number}" for number in np.minimum(generator.zipf(1.5, 3_000), 1_000)]
    counts = count_clips(labels, uploaders, [f"c{i}" for i in range(200)])
    axes = plot_class_by_uploader(counts, tmp_path / "pairs.png").axes[0]
    assert axes.images[0].get_array().shape == counts.shape
    assert len(plot_clips_per_class(counts, tmp_path / "classes.png").axes[0].patches) == 200
