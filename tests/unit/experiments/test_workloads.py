"""A workload and a corpus of somebody else's, in a folder of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openfl_audio.errors import SettingsError
from openfl_audio.experiments.workloads import find_workload, workload_names
from openfl_audio.training.workload import Workload, register_tasks

pytestmark = pytest.mark.process

SHARD = '''
"""Points of a line, from points.csv: a column x and a column y."""

import csv

import numpy as np
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor


class Points(ShardDataset):
    def __init__(self, rows):
        self.rows = np.array(rows, np.float32)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class PointsShard(ShardDescriptor):
    def __init__(self, path, rank, world_size):
        with open(path, newline="") as file:
            rows = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
        self.train, self.validation = rows[rank - 1 :: world_size], rows

    def get_dataset(self, dataset_type):
        return Points(self.train if dataset_type == "train" else self.validation)

    sample_shape, target_shape, dataset_description = ["1"], ["1"], "points"
'''
WORKLOAD = '''
"""A line through points."""

from functools import partial

import torch

from openfl_audio import RunSettings, ShardData, Workload, register_tasks

from line.shard import PointsShard


class Data(ShardData):
    def make_train(self, dataset):
        return dataset


def train(model, points, optimizer, device, steps):
    for _ in range(steps):
        x, y = torch.from_numpy(points.rows).T
        loss = ((model(x[:, None])[:, 0] - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item()}


def validate(model, points, device):
    x, y = torch.from_numpy(points.rows).T
    with torch.no_grad():
        return {"loss": ((model(x[:, None])[:, 0] - y) ** 2).mean().item()}


def create_line():
    line = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(line.weight)
    torch.nn.init.zeros_(line.bias)
    return line


class Settings(RunSettings):
    steps: int = 20


class Line(Workload[Settings]):
    config_class = Settings

    def model(self, config):
        return create_line

    def tasks(self, config):
        return register_tasks(train, validate, {"steps": config.steps})

    def data(self, config):
        return Data()

    def best(self, config):
        return "loss", "min"

    def shard(self, config, data, rank, world_size):
        params = {"path": str(data / "points.csv"), "rank": rank, "world_size": world_size}
        return {"template": "line.shard.PointsShard", "params": params}

    def natural_clients(self, config, data):
        return 2

    def evaluate(self, model, config, data, device):
        points = PointsShard(data / "points.csv", 1, 1).get_dataset("validation")
        return {"validation": validate(model, points, device)}

    def save(self, model, config, folder):
        folder.mkdir()
        torch.save(model.state_dict(), folder / "model.pt")
'''


@pytest.fixture
def line(tmp_path) -> Path:
    """The folder of a package with a workload and a shard descriptor; the corpus is beside it."""
    package = tmp_path / "line"
    (package / "configs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "shard.py").write_text(SHARD)
    (package / "workload.py").write_text(WORKLOAD)
    (package / "configs" / "small.yaml").write_text(
        "rounds: 3\nbatch_size: 8\noptimizer: {learning_rate: 0.1}\nclients: 2\n"
    )
    rows = "".join(f"{x / 10},{3 * x / 10 - 1}\n" for x in range(-10, 11))
    (tmp_path / "points.csv").write_text(f"x,y\n{rows}")
    return package


@pytest.mark.integration
def test_a_workload_in_a_folder_trains_centralized_simulated_and_federated(line, tmp_path):
    models = {}
    for mode in ("centralized", "simulated", "federated"):
        out = tmp_path / "runs" / mode
        train = [sys.executable, "-m", "openfl_audio.cli", "train"]
        command = [*train, str(line), "--mode", mode, "--data", str(tmp_path), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        result = json.loads((out / "result.json").read_text())
        assert result["workspace"] == "line"
        assert result["metrics"]["best"]["validation"]["loss"] < 0.05
        models[mode] = (out / "model" / "model.pt").read_bytes()
    assert models["simulated"] == models["federated"]


def test_a_folder_without_a_workload_is_named_with_those_that_are_installed(tmp_path):
    names = ", ".join(workload_names())
    with pytest.raises(SettingsError, match=f"there is no workload '.*nothing': it should be {names}, or the folder"):
        find_workload(str(tmp_path / "nothing"))


def test_a_module_with_two_workloads_is_refused(line):
    path = line.with_name("lines") / "workload.py"
    path.parent.mkdir()
    path.write_text(WORKLOAD + "\n\nclass Other(Line):\n    pass\n")
    with pytest.raises(SettingsError, match=r"workload\.py has 2 subclasses of Workload: it should have one"):
        find_workload(str(path.parent))


@pytest.mark.parametrize("name", workload_names())
def test_an_installed_workload_has_its_name_and_its_package(name):
    workload = find_workload(name)
    assert isinstance(workload, Workload)
    assert workload.name == name


def test_tasks_get_what_they_have_parameters_for():
    def train(network, batches, optimizer, device, round_number, settings):
        return {"loss": 0.0}

    def validate(network, batches, device):
        return {"loss": 0.0}

    keeper = register_tasks(train, validate, {"settings": 3})
    assert keeper.task_contract["train"] == {
        "model": "network",
        "data_loader": "batches",
        "device": "device",
        "optimizer": "optimizer",
        "round_num": "round_number",
    }
    assert keeper.task_contract["validate"]["round_num"] is None
    assert keeper.task_settings["train"] == {"settings": 3}
    assert set(keeper.get_registered_tasks()) == {"train", "locally_tuned_model_validate", "aggregated_model_validate"}
