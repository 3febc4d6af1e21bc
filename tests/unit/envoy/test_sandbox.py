"""Paths and variables that a worker sees, and the sentence of an envoy where nothing confines it."""

import os
from pathlib import Path

import pytest

from openfl_audio.envoy import sandbox
from openfl_audio.envoy.sandbox import Sandbox, environment, find_sandbox, shown_to_workers, without


def files_in(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def shown_below(folder: Path, *arguments: object) -> list[str]:
    shown = shown_to_workers(*arguments)
    return sorted(path.relative_to(folder).as_posix() for path in shown if path.is_relative_to(folder))


def test_recordings_and_the_sites_own_modules_are_shown_and_nothing_else_beside_the_settings(tmp_path):
    files_in(tmp_path, "site/a.yaml", "site/reader.py", "site/kit/__init__.py", "site/notes.txt", "site/more/x.txt")
    files_in(tmp_path, "recordings/one.wav", "tables/clips.csv", "elsewhere/two.wav", "work/a/record.jsonl")
    parameters = {
        "data_path": "../recordings",
        "tables": [str(tmp_path / "tables/clips.csv")],
        "seed": 7,
        "name": "a" * 5000,
    }
    secret = [tmp_path / "site/a.yaml", tmp_path / "work"]
    shown = shown_below(tmp_path, parameters, [tmp_path / "elsewhere"], tmp_path / "site", secret)
    assert shown == ["elsewhere", "recordings", "site/kit", "site/reader.py", "tables/clips.csv"]


def test_of_a_folder_that_has_secrets_as_well_the_rest_is_shown(tmp_path):
    files_in(tmp_path, "a.yaml", "keys/a.key", "keys/readme.txt", "clips/one.wav", "work/a/record.jsonl", "table.csv")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "way").symlink_to(tmp_path / "keys")
    (tmp_path / "linked").symlink_to(tmp_path / "clips")
    secret = [tmp_path / "a.yaml", tmp_path / "keys/a.key", tmp_path / "work"]
    shown = shown_below(tmp_path, {"data_path": "."}, [], tmp_path, secret)
    assert shown == ["clips", "keys/readme.txt", "linked", "table.csv"]


def test_what_is_named_inside_a_secret_folder_is_shown(tmp_path):
    files_in(tmp_path, "work/recordings/one.wav")
    assert [*without(tmp_path / "work/recordings", {tmp_path / "work"})] == [tmp_path / "work/recordings"]
    assert [*without(tmp_path / "work", {tmp_path / "work"})] == []


def test_recordings_behind_a_link_are_shown_under_both_names(tmp_path):
    files_in(tmp_path, "disk/one.wav")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert shown_below(tmp_path, {"data_path": "data"}, [], tmp_path, []) == ["data", "disk"]


def test_of_the_environment_a_worker_gets_what_is_known_to_be_no_secret(tmp_path):
    given = {
        "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C", "PYTHONPATH": "/x/y", "OMP_NUM_THREADS": "2",
        "SITE_PASSWORD": "x", "HF_TOKEN": "x", "TORCH_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "/x",
        "HF_HOME": "/models",
    }  # fmt: skip
    kept = environment(given)
    assert "x" not in kept.values()
    assert {name: kept[name] for name in given if name in kept} == {
        "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C", "PYTHONPATH": "/x/y", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    assert (kept["HF_HUB_CACHE"], kept["TORCH_HOME"]) == ("/models/hub", str(tmp_path / ".cache/torch"))
    assert environment({"HOME": "/"})["HOME"] == "/tmp/home"


def test_without_bubblewrap_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sandbox(tmp_path, [], tmp_path, [], 1 << 20) == "bubblewrap (the program bwrap) is not installed"


@pytest.mark.process
def test_each_way_is_tried_and_where_none_works_its_own_words_are_told(tmp_path, monkeypatch):
    """Stand-ins for a bubblewrap that the kernel allows nothing, and for one that is too old for an option."""
    program = tmp_path / "bwrap"
    program.write_text(
        '#!/bin/sh\necho "$@" >>"$0.tried"\necho "bwrap: No permissions to create new namespace" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find_sandbox(tmp_path, [], tmp_path, [], 1 << 20) == "bwrap: No permissions to create new namespace"
    tried = Path(f"{program}.tried").read_text().splitlines()
    assert [("--disable-userns" in line, "--unshare-user" in line) for line in tried] == [(True, True), (False, True)]
    program.write_text('#!/bin/sh\ncase "$*" in *--disable-userns*) echo "bwrap: Unknown option" >&2; exit 1;; esac\n')
    found = find_sandbox(tmp_path, [], tmp_path, [], 1 << 20)
    assert isinstance(found, Sandbox)
    assert found.users == ("--unshare-user",)


def test_a_command_that_hangs_or_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "PROBE_SECONDS", 0.1)
    assert "timed out after 0.1 seconds" in sandbox.fault_of(["sleep", "60"])
    assert "No such file or directory" in sandbox.fault_of([str(tmp_path / "nothing")])
    assert sandbox.fault_of(["sh", "-c", "echo first >&2; echo last >&2; exit 3"]) == "last"
    assert sandbox.fault_of(["sh", "-c", "exit 3"]) == "sh ended with 3"
