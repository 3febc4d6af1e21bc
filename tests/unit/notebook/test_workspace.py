"""Files of a package that travel to the envoys, and how they are packed."""

import importlib
import json
import logging
import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from openfl_audio.errors import DefinitionError
from openfl_audio.node.compatibility import Requirements
from openfl_audio.notebook.experiment import Definition
from openfl_audio.notebook.interactive_api import DataInterface, FLExperiment, ModelInterface, TaskInterface
from openfl_audio.notebook.workspace import describe_left_out, select_files
from openfl_audio.protocol.archive import check_archive, unpack_archive
from openfl_audio.protocol.plan import ExperimentPlan

MODULES_AND_SETTINGS = ["__init__.py", "configs/a.yaml", "configs/deep/b.json", "tasks.py"]
NOT_FOR_ENVOYS = {
    ".env": ".env",
    ".git/config": ".git/",
    ".venv/lib/six.py": ".venv/",
    ".mypy_cache/x.json": ".mypy_cache/",
    "env/pyvenv.cfg": "env/",
    "experiment.egg-info/setup.py": "experiment.egg-info/",
    "._tasks.py": "._tasks.py",
    "recordings/ward_7.wav": "recordings/ward_7.wav",
    "recordings/ward_7.FLAC": "recordings/ward_7.FLAC",
    "recordings/patients.csv": "recordings/patients.csv",
    "scientist.key": "scientist.key",
    "id_ed25519": "id_ed25519",
    "model.safetensors": "model.safetensors",
    "run_12:30.log": "run_12:30.log",
    "run.ipynb": "run.ipynb",
    "node_modules/left-pad/package.json": "node_modules/",
    "conda/conda-meta/python.json": "conda/",
    "vendor/site-packages/six.py": "vendor/site-packages/",
    "wandb/run.yaml": "wandb/",
    "cache/CACHEDIR.TAG": "cache/",
    "client_secret.json": "client_secret.json",
    "configs/Credentials.YAML": "configs/Credentials.YAML",
    "passwords.ini": "passwords.ini",
    "kaggle.json": "kaggle.json",
    ".aws/config.ini": ".aws/",
    ".netrc": ".netrc",
    "ca.pem": "ca.pem",
    "id_rsa": "id_rsa",
    "Thumbs.db": "Thumbs.db",
}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")


def names_of(folder: Path, *also: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in select_files(folder, also)[0]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package 'packed_experiment', with modules, settings, and much that is nobody else's business."""
    write(tmp_path / "packed_experiment", *MODULES_AND_SETTINGS, *NOT_FOR_ENVOYS, "__pycache__/tasks.pyc")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "packed_experiment", raising=False)
    return importlib.import_module("packed_experiment")


def pack(
    package: ModuleType | list[ModuleType],
    *workspace_files: str,
    host: str = "localhost",
    requirements: Requirements | None = None,
) -> bytes:
    federation = SimpleNamespace(director_node_fqdn=host, director_port=50051, tls=False, get_shard_registry=dict,
                                 cert_chain=None, api_cert=None, api_private_key=None, credentials=None,
                                 dir_client=SimpleNamespace(client_id="ada"))  # fmt: skip
    experiment = FLExperiment(federation, "packed", package, workspace_files)
    experiment.requirements = requirements or Requirements()
    model = ModelInterface(dict, dict)
    task = {"name": "train", "function_name": "train", "task_type": "train"}
    best = {"metric": "accuracy", "direction": "max"}
    plan = ExperimentPlan(name="packed", federation_uuid="", rounds=1, tasks=[task], best=best)
    definition = Definition(plan, {}, model, TaskInterface(), DataInterface(), "RESET")
    experiment._make_plan(definition, "CPU_ONLY", None)
    return experiment._pack_workspace(definition, plan)


def packed_names(archive: bytes) -> list[str]:
    names = zipfile.ZipFile(BytesIO(archive)).namelist()
    return sorted(name.removeprefix("packed_experiment/") for name in names if name.startswith("packed_experiment/"))


def test_requirements_travel_with_the_versions(package):
    for requirements, wanted in (
        (None, None),
        (Requirements(packages=["pystoi>=0.4"], memory_gb=4), {"packages": ["pystoi>=0.4"], "memory_gb": 4.0}),
    ):
        archive = zipfile.ZipFile(BytesIO(pack(package, requirements=requirements)))
        environment = json.loads(archive.read("environment.json"))
        assert environment.pop("requirements", None) == wanted
        assert environment.keys() >= {"python", "torch", "openfl-audio"}


def test_modules_and_settings_travel_and_nothing_else(package):
    assert packed_names(pack(package)) == MODULES_AND_SETTINGS


@pytest.mark.parametrize("name", NOT_FOR_ENVOYS)
def test_what_is_left_out_is_named(tmp_path, name):
    write(tmp_path, *MODULES_AND_SETTINGS, name)
    sent, left_out = select_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in sent] == MODULES_AND_SETTINGS
    assert left_out == [NOT_FOR_ENVOYS[name]]


def test_packages_that_build_on_each_other_travel_together(tmp_path, monkeypatch):
    write(tmp_path / "packed_together", "__init__.py", "first/__init__.py", "first/a.csv", "second/__init__.py")
    write(tmp_path / "packed_together", "second/a.csv", "third/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    packages = [importlib.import_module(f"packed_together.{name}") for name in ("first", "second")]
    names = zipfile.ZipFile(BytesIO(pack(packages, "*.csv"))).namelist()
    assert sorted(name for name in names if name.startswith("packed_together/")) == [
        "packed_together/__init__.py",
        "packed_together/first/__init__.py",
        "packed_together/first/a.csv",
        "packed_together/second/__init__.py",
    ]


def test_a_module_beside_the_notebook_travels_alone(tmp_path, monkeypatch):
    write(tmp_path, "notebook_tasks.py", "secret.py", "recordings.csv")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("notebook_tasks")
    archive = zipfile.ZipFile(BytesIO(pack(module)))
    sent = {name for name in archive.namelist() if name.endswith((".py", ".csv"))}
    assert sent == {"notebook_tasks.py"}
    assert archive.read("notebook_tasks.py") == b"x = 1\n"
    with pytest.raises(DefinitionError, match="'notebook_tasks' is a module: give a package"):
        pack(module, "*.csv")


def test_a_module_of_a_package_is_refused_with_the_package_that_would_do(package):
    module = importlib.import_module("packed_experiment.tasks")
    with pytest.raises(DefinitionError, match="a module of a package: give the imported package 'packed_experiment'"):
        pack(module)


def test_start_says_what_travels_and_what_is_left_out(package, caplog):
    with caplog.at_level(logging.INFO, "openfl_audio.notebook.workspace"):
        pack(package)
    assert "package 'packed_experiment' is sent to every envoy: 4 files, 0.0 kB" in caplog.text
    left_out = "left out of package 'packed_experiment' (name in workspace_files what the tasks need): ._tasks.py, .aws"
    assert left_out in caplog.text


def test_what_the_tasks_need_besides_is_named_by_pattern(package):
    assert packed_names(pack(package, "recordings/*.csv", "model.*")) == sorted(
        [*MODULES_AND_SETTINGS, "recordings/patients.csv", "model.safetensors"]
    )


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("*.txt", r"no file in .* matches '\*\.txt'"), ("configs", "no file in .* matches 'configs'"),
     ("/etc/passwd", "must be a pattern relative to"), ("../*", "must be a pattern relative to"),
     ("", "must be a pattern relative to")],
)  # fmt: skip
def test_a_pattern_that_finds_nothing_or_leads_out_is_refused(tmp_path, pattern, sentence):
    write(tmp_path, *MODULES_AND_SETTINGS)
    with pytest.raises(ValueError, match=sentence):
        select_files(tmp_path, [pattern])


def test_links_arrive_as_what_they_lead_to_and_a_loop_ends(tmp_path):
    write(tmp_path / "elsewhere", "shared/layers.py")
    write(tmp_path / "package", "__init__.py")
    (tmp_path / "package" / "shared").symlink_to(tmp_path / "elsewhere" / "shared")
    (tmp_path / "package" / "loss.py").symlink_to(tmp_path / "elsewhere" / "shared" / "layers.py")
    (tmp_path / "package" / "loop").symlink_to(tmp_path / "package")
    (tmp_path / "package" / "broken.py").symlink_to(tmp_path / "nothing.py")
    assert names_of(tmp_path / "package") == ["__init__.py", "loss.py", "shared/layers.py"]
    assert select_files(tmp_path / "package")[1] == ["broken.py", "loop/"]


def test_a_name_that_is_not_utf_8_is_refused_by_name_only_where_it_would_travel(tmp_path):
    write(tmp_path, "__init__.py", os.fsdecode(b"caf\xe9.wav"))
    assert describe_left_out(select_files(tmp_path)[1]) == r"caf\xe9.wav"
    write(tmp_path, os.fsdecode(b"caf\xe9.py"))
    with pytest.raises(ValueError, match=r"caf.*\.py' is not UTF-8: rename it"):
        select_files(tmp_path)


def test_of_many_files_left_out_the_first_ten_are_named():
    assert describe_left_out([f"{number}.wav" for number in range(12)]).endswith("9.wav and 2 more")


@pytest.mark.parametrize("seconds", [0, 1, 5_000_000_000], ids=["epoch", "1970", "2128"])
def test_a_file_of_any_year_is_packed(package, tmp_path, seconds):
    os.utime(tmp_path / "packed_experiment" / "tasks.py", (seconds, seconds))
    assert packed_names(pack(package)) == MODULES_AND_SETTINGS


@pytest.mark.parametrize("name", ["run_12:30.log", "a:b.txt", r"odd\name.txt", "ünicode.txt", "two words.txt"])
def test_an_odd_name_arrives_as_it_is(package, tmp_path, name):
    write(tmp_path / "packed_experiment", name)
    archive = tmp_path / "workspace.zip"
    archive.write_bytes(pack(package, name.replace("\\", "?")))
    check_archive(archive)
    unpack_archive(archive, tmp_path / "envoy")
    assert (tmp_path / "envoy" / "packed_experiment" / name).read_text() == "x = 1\n"


def test_a_large_table_in_json_is_no_setting_and_a_tokenizer_is_one(tmp_path):
    write(tmp_path, "tokenizer.json", "transcripts.json", "large.py")
    for name in ("transcripts.json", "large.py"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate((10 << 20) + 1)
    sent, left_out = select_files(tmp_path)
    assert [path.name for path in sent] == ["large.py", "tokenizer.json"]
    assert left_out == ["transcripts.json"]
    assert "transcripts.json" in names_of(tmp_path, "transcripts.json")
