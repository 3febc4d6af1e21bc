"""The history of an experiment in a tracker's own files."""

import sys

import pytest

from openfl_audio.errors import SettingsError
from openfl_audio.experiments.trackers import TRACKERS
from openfl_audio.protocol.plan import TRAIN

RECORD = {
    "round": 0,
    "metrics": {TRAIN: {"loss (mean of sites)": 0.5}},
    "envoys": {"a": {TRAIN: {"size": 3, "loss": 0.25}}},
    "seconds": 1.0,
    "bytes_up": 2,
    "bytes_down": 3,
}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named(tracker, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(
        SettingsError, match=rf"--to {tracker}: it is not installed: pip install 'openfl-audio\[{tracker}\]'"
    ):
        TRACKERS[tracker]("words", {}, [RECORD], tmp_path)


def test_mlflow_has_each_round_and_the_settings(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (`make install` has it)")
    TRACKERS["mlflow"]("words", {"participation.quorum": "2"}, [RECORD, RECORD | {"round": 1}], tmp_path)
    run = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    assert run.data.params == {"participation.quorum": "2"}
    assert run.data.metrics[f"envoys/a/{TRAIN}/loss"] == 0.25
    steps = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"{TRAIN}/loss _mean of sites_")
    assert [(point.step, point.value) for point in steps] == [(0, 0.5), (1, 0.5)]


@pytest.mark.slow
def test_wandb_writes_an_offline_run(tmp_path):
    pytest.importorskip("wandb", reason="W&B is not installed (the extra `wandb` has it)")
    folder = TRACKERS["wandb"]("words", {"rounds": "1"}, [RECORD], tmp_path)
    assert [path.suffix for path in folder.glob("offline-run-*/run-*.wandb")] == [".wandb"]
