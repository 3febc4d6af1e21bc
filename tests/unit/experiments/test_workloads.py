"""A workload and a corpus of somebody else's, in a folder of their own."""

import json
import shutil
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.workloads import find_workload, workload_names
from openfl_audio.training.workload import Workload, register_tasks

pytestmark = pytest.mark.process

LINE = Path(__file__).parents[2] / "workloads" / "line"


@pytest.mark.integration
@pytest.mark.slow
def test_a_workload_in_a_folder_is_compared_centralized_simulated_and_federated(tmp_path, capsys):
    assert main(["compare", str(LINE), "--data", str(LINE), "--out", str(tmp_path / "runs")]) == 0
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == ["| run", "| ---", "| centralized", "| centralized, equal steps", "| simulated", "| federated"]
    assert (tmp_path / "runs" / "comparison.png").exists()
    models = {}
    for mode in ("centralized", "simulated", "federated"):
        out = tmp_path / "runs" / mode
        result = json.loads((out / "result.json").read_text())
        assert (result["workspace"], result["mode"]) == ("line", mode)
        assert result["metrics"]["best"]["validation"]["loss"] < 0.05
        models[mode] = (out / "model" / "model.pt").read_bytes()
    assert models["simulated"] == models["federated"]


def test_a_folder_without_a_workload_is_named_with_those_that_are_installed(tmp_path):
    names = ", ".join(workload_names())
    with pytest.raises(SettingsError, match=f"there is no workload '.*nothing': it should be {names}, or the folder"):
        find_workload(str(tmp_path / "nothing"))


def test_a_module_with_two_workloads_is_refused(tmp_path):
    path = tmp_path / "lines" / "workload.py"
    shutil.copytree(LINE, path.parent)
    path.write_text(
        (LINE / "workload.py").read_text().replace("line.", "lines.") + "\n\nclass Other(Line):\n    pass\n"
    )
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
