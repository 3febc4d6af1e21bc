"""Every client judged, on a workload of points: gains, the models of all at all, and what stays with a client."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from openfl_audio.config import load_settings
from openfl_audio.experiments.run import run
from openfl_audio.experiments.workloads import find_workload
from openfl_audio.training.bootstrap import bootstrap_interval
from openfl_audio.training.sites import gains_of, summarize_gain
from openfl_audio.training.workload import Workload

LINE = Path(__file__).parents[2] / "workloads" / "line"
SCHOOL, CLINIC = "client-0", "client-1"


@pytest.fixture
def line(tmp_path) -> Iterator[Workload]:
    """A workload whose two clients have lines of their own: y = x at the first one, and y = x + 4 at the second."""
    folder = tmp_path / "line"
    shutil.copytree(LINE, folder)
    rows = [(x, x + 4 * (i % 2)) for i, x in enumerate(np.linspace(-1, 1, 24).repeat(2))]
    (folder / "points.csv").write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y in rows))
    shard = (folder / "shard.py").read_text()
    own = "self.train = self.validation = rows[rank - 1 :: world_size]"
    (folder / "shard.py").write_text(
        shard.replace("self.train, self.validation = rows[rank - 1 :: world_size], rows", own)
    )
    forget_lines()
    yield find_workload(str(folder))
    forget_lines()


def forget_lines() -> None:
    """Let a folder of that name be imported from where it is now."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "line"]:
        del sys.modules[name]


def judge(line, tmp_path, mode, client_ids=(0,), **changes) -> Path:
    folder = tmp_path / "line"
    settings = load_settings(folder / "configs" / "small.yaml", line.config_class, {"clients": 2, **changes})
    run(line, settings, mode, folder, tmp_path / mode, client_ids)
    return tmp_path / mode


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.training
def test_the_gain_over_training_alone_is_negative_where_sites_are_unlike(line, tmp_path):
    out = judge(line, tmp_path, "simulated", judge="matrix")
    gain, scores = read(out / "gain.json"), read(out / "per_client.json")
    assert gain["joined"] == {name: scores[name]["loss"] for name in (SCHOOL, CLINIC)}
    assert all(value < 0.05 for value in gain["alone"].values())
    assert all(value > 2 for value in gain["joined"].values())
    assert gain["gain"] == {name: gain["alone"][name] - gain["joined"][name] for name in gain["alone"]}
    assert (gain["profit"], gain["clients"]) == (0, 2)
    assert gain["low"] <= gain["mean"] <= gain["high"] < 0
    # The model of one at the points of the other is off by four.
    assert gain["matrix"][SCHOOL][CLINIC] == pytest.approx(16, rel=0.1)
    assert gain["matrix"][CLINIC][SCHOOL] == pytest.approx(16, rel=0.1)
    assert read(out / "result.json")["per_client"]["loss"]["gain"]["profit"] == 0
    assert {"gain.png", "matrix.png", "per_client.png"} <= {path.name for path in out.iterdir()}


@pytest.mark.training
def test_clients_are_judged_in_a_centralized_run_and_where_each_trains_alone(line, tmp_path):
    centralized = judge(line, tmp_path, "centralized")
    assert read(centralized / "per_client.json").keys() == {SCHOOL, CLINIC}
    assert read(centralized / "result.json")["per_client"]["loss"]["clients"] == 2
    assert not (centralized / "gain.json").exists()
    alone = judge(line, tmp_path, "individual", (0, 1), judge="matrix")
    matrix = read(alone / "matrix.json")["matrix"]
    assert matrix[SCHOOL][SCHOOL] < 0.05
    assert matrix[SCHOOL][CLINIC] == pytest.approx(16, rel=0.1)
    assert (alone / "matrix.png").exists()


@pytest.mark.training
def test_what_stays_with_a_client_is_scored_and_exported_with_it(line, tmp_path):
    out = judge(line, tmp_path, "simulated", local_tensors=["bias"], judge="gain")
    scores = read(out / "per_client.json")
    assert scores[SCHOOL]["loss"] < 0.05
    assert scores[CLINIC]["loss"] < 0.05
    biases = [torch.load(out / "sites" / name / "model.pt")["bias"].item() for name in (SCHOOL, CLINIC)]
    assert biases == pytest.approx([0, 4], abs=0.2)
    # The clients choose the best model, each with its own: an evaluator would have a bias of 0.
    last = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()][-1]
    assert last["envoys"].keys() == {SCHOOL, CLINIC}
    assert last["metrics"]["aggregated_model_validate"]["loss"] == pytest.approx(
        np.mean([scores[name]["loss"] for name in (SCHOOL, CLINIC)])
    )
    assert read(out / "gain.json")["alone"][CLINIC] < 0.05


@pytest.mark.integration
def test_what_stays_with_an_envoy_is_scored_and_exported_as_in_a_simulation(line, tmp_path):
    simulated = judge(line, tmp_path, "simulated", local_tensors=["bias"])
    federated = judge(line, tmp_path, "federated", local_tensors=["bias"])
    assert read(federated / "per_client.json") == read(simulated / "per_client.json")
    for name in (SCHOOL, CLINIC):
        path = Path("sites", name, "model.pt")
        assert (federated / path).read_bytes() == (simulated / path).read_bytes()


def test_a_gain_is_what_is_better_in_the_direction_of_the_metric():
    assert gains_of({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 1.5}, "min") == {"a": 2.0, "b": -0.5}
    assert summarize_gain({}) == {}
    assert summarize_gain({"a": 1.0}) == {"mean": 1.0, "profit": 1, "clients": 1}


def test_an_interval_draws_whole_groups():
    generator = np.random.default_rng(0)
    speakers = generator.normal(0.7, 0.1, size=30)
    low, high = bootstrap_interval(speakers * 20, np.full(30, 20))
    half = 1.96 * speakers.std() / np.sqrt(30)
    assert (low, high) == pytest.approx((speakers.mean() - half, speakers.mean() + half), abs=0.01)
    # One large group that is unlike the others makes it wide.
    low, high = bootstrap_interval([100, 0, 0], [100, 10, 10])
    assert (low, high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="1 groups: an interval needs two"):
        bootstrap_interval([1], [1])
