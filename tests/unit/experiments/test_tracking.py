import json
import sqlite3
import sys
from importlib.util import find_spec

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openfl_audio.errors import SettingsError
from openfl_audio.experiments.tracking import Watchers
from openfl_audio.training.run_settings import RunSettings

SETTINGS = {"rounds": 3, "batch_size": 4, "optimizer": {"learning_rate": 0.1}}


def record(number: int) -> dict:
    metrics = {"train": {"loss": 1.0 / (1 + number)}}
    return {"round": number, "metrics": metrics, "envoys": {}, "seconds": 1.0, "bytes_up": 2, "bytes_down": 3}


def test_the_rounds_of_every_run_are_there_for_tensorboard_and_once_only_where_it_is_resumed(tmp_path):
    for rounds in ([0, 1], [0, 1, 2]):
        with Watchers(RunSettings(**SETTINGS), "a run", tmp_path) as watchers:
            for number in rounds:
                watchers.show(record(number))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]


@pytest.mark.skipif(find_spec("trackio") is None, reason="Trackio is not installed")
def test_a_project_gets_each_round_once_with_settings_and_tags(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "tracked"))
    settings = RunSettings(**SETTINGS, project_name="fedenhance", tags=["unsupervised", "rocks"])
    for rounds in ([0, 1], [0, 1, 2]):
        with Watchers(settings, "a run", tmp_path) as watchers:
            for number in rounds:
                watchers.show(record(number))
    [database] = (tmp_path / "tracked").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
        [config] = connection.execute("select config from configs").fetchall()[-1:]
    assert [(step, json.loads(metrics)["train/loss"]) for step, metrics in rows] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert json.loads(config[0])["tags"] == ["unsupervised", "rocks"]
    assert json.loads(config[0])["rounds"] == 3


def test_a_project_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    settings = RunSettings(**SETTINGS, project_name="fedenhance")
    with pytest.raises(SettingsError, match=r"^project_name: .*pip install 'openfl-audio\[tracking\]'"):
        Watchers(settings, "a run", tmp_path).__enter__()
