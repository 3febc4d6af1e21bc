from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openfl_audio.director.tensorboard import TensorBoard


def make_record(round_number: int, score: float) -> dict[str, Any]:
    return {
        "round": round_number,
        "best": False,
        "metrics": {"aggregated_model_validate": {"accuracy": score}, "train": {"loss": 2 * score}},
        "envoys": {
            "a": {"train": {"size": 3, "loss": 0.25}},
            "b": {"train": {"size": 5, "loss": 0.5}, "aggregated_model_validate": {"size": 0}},
        },
        "refused": {},
        "missing": [],
        "seconds": 1.5,
        "bytes_up": 100,
        "bytes_down": 3_000_000_000,
    }


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve, as TensorBoard itself reads them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_record_is_a_point_on_a_curve_of_each_metric_and_each_envoy(tmp_path):
    tensorboard = TensorBoard(tmp_path, 0)
    tensorboard.add(make_record(0, 0.25))
    tensorboard.add(make_record(1, 0.5))
    found = curves(tmp_path)
    assert found["aggregated_model_validate/accuracy"] == [(0, 0.25), (1, 0.5)]
    assert found["train/loss"] == [(0, 0.5), (1, 1.0)]
    assert found["envoys/b/train/size"] == [(0, 5), (1, 5)]
    assert found["round/bytes_down"] == [(0, 3e9), (1, 3e9)]
    assert found["round/participants"] == [(0, 2), (1, 2)]
    assert len(found) == 2 + 5 + 4


def test_a_mean_of_sites_is_a_curve_that_is_called_one(tmp_path):
    TensorBoard(tmp_path, 0).add(make_record(0, 0.25) | {"means_of_sites": {"train": ["loss"]}})
    found = curves(tmp_path)
    assert found["train/loss (mean of sites)"] == [(0, 0.5)]
    assert "train/loss" not in found
    assert found["aggregated_model_validate/accuracy"] == [(0, 0.25)]
    assert found["envoys/a/train/loss"] == [(0, 0.25)]


def test_a_record_is_there_before_the_experiment_ends(tmp_path):
    tensorboard = TensorBoard(tmp_path, 0)
    tensorboard.add(make_record(0, 0.25))
    assert curves(tmp_path)["round/seconds"] == [(0, 1.5)]


def test_after_a_restart_rounds_that_did_not_count_are_replaced(tmp_path):
    tensorboard = TensorBoard(tmp_path, 0)
    for round_number in range(3):
        tensorboard.add(make_record(round_number, 0.25))
    tensorboard = TensorBoard(tmp_path, 2)
    tensorboard.add(make_record(2, 0.75))
    tensorboard.add(make_record(3, 1.0))
    assert curves(tmp_path)["aggregated_model_validate/accuracy"] == [(0, 0.25), (1, 0.25), (2, 0.75), (3, 1.0)]


def test_a_number_too_large_for_the_format_is_no_reason_to_fail(tmp_path):
    tensorboard = TensorBoard(tmp_path, 0)
    tensorboard.add(make_record(0, 1e300))
    assert curves(tmp_path)["train/loss"] == [(0, pytest.approx(float("inf")))]
