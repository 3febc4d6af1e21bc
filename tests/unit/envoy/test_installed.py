"""An installed workload is told from another one by each byte of its sources and each part of its objects."""

import json
from pathlib import Path

import pytest

import workspaces.keyword_spotting
from openfl_audio.envoy.installed import why_not_installed
from openfl_audio.notebook.source_form import write_objects
from openfl_audio.notebook.workspace import files_to_send
from openfl_audio.protocol.plan import NOTEBOOK_MODULE, OBJECTS_FILE
from workspaces.keyword_spotting.workload import KeywordSpotting, KeywordSpottingSettings

ROOT = Path(workspaces.__path__[0]).parent


@pytest.fixture
def submission(tmp_path):
    """A submission of keyword spotting in a folder."""
    workload = KeywordSpotting()
    config = KeywordSpottingSettings.model_validate(
        {
            "model": {"architecture": "upstream", "upstream": "log_mel"},
            "rounds": 1,
            "batch_size": 4,
            "optimizer": {"learning_rate": 0.1},
        }
    )
    given = workload.start_arguments(config)
    objects, cells = write_objects(given["model_provider"], given["task_keeper"], given["data_loader"])
    assert not cells
    folder = tmp_path / "workspace"
    for name, path in files_to_send(workload.packages, ()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    (folder / OBJECTS_FILE).write_text(objects)
    return folder


def test_an_installed_workload_needs_no_approval(submission):
    assert why_not_installed(submission) == ""


def test_one_byte_of_a_source_or_a_source_more_makes_it_another(submission):
    tasks = submission / "workspaces" / "keyword_spotting" / "tasks.py"
    tasks.write_bytes(tasks.read_bytes().replace(b"trains_privately", b"trains_publicly_"))
    assert why_not_installed(submission) == "'workspaces/keyword_spotting/tasks.py' is not what is installed here"
    tasks.write_bytes((ROOT / "workspaces" / "keyword_spotting" / "tasks.py").read_bytes())
    (submission / f"{NOTEBOOK_MODULE}.py").write_text("")
    assert why_not_installed(submission) == f"'{NOTEBOOK_MODULE}.py' is not what is installed here"
    (submission / f"{NOTEBOOK_MODULE}.py").rename(submission / "torch.py")
    assert why_not_installed(submission) == "'torch.py' is not what is installed here"


@pytest.mark.parametrize("kind", ["call", "name", "new"])
def test_objects_of_an_installed_workload_are_made_of_its_parts_alone(submission, kind):
    objects = json.loads((submission / OBJECTS_FILE).read_text())
    objects["data"] = {"partial": {"args": [{kind: "openfl_audio.files:write_whole"}]}}
    (submission / OBJECTS_FILE).write_text(json.dumps(objects))
    assert why_not_installed(submission) == "'openfl_audio.files:write_whole' is no part of an installed workload"


@pytest.mark.parametrize(
    "function", [{"name": "workspaces.keyword_spotting.data:encode"}, {"method": "fit", "of": {}}, "train"]
)
def test_the_training_task_is_one_of_the_workloads_tasks(submission, function):
    objects = json.loads((submission / OBJECTS_FILE).read_text())
    training = next(each for each in objects["tasks"] if each["contract"]["optimizer"])
    training["function"] = function
    (submission / OBJECTS_FILE).write_text(json.dumps(objects))
    assert "is none of an installed workload" in why_not_installed(submission)
