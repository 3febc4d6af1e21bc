import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from openfl_audio.errors import FolderInUseError, FormatError
from openfl_audio.files import (
    CLAIM_FORMAT,
    claim,
    make_folder,
    read_claim,
    replacing,
    write_json,
    write_json_lines,
    write_result,
    write_whole,
)
from openfl_audio.formats import check_format, stamp, written_by
from openfl_audio.node.local_state import ClientStates


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List what is brought to the disk, in order, by the names of that moment."""
    paths, sync = [], os.fsync

    def note_and_sync(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    return paths


WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write_whole(path, b"new", durable=True),
    "JSON": lambda path: write_json(path, {"a": 1}),
    "lines": lambda path: write_json_lines(path, [{"a": 1}]),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_anything_else(tmp_path, synced, kind):
    WRITERS[kind](tmp_path / "file")
    assert synced == [tmp_path / ".file.partial", tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_in_the_middle_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path, durable=False) as temporary:
            temporary.write_text("ne")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_half()
    assert path.read_text() == "old"


def test_after_an_error_nothing_of_the_new_file_is_left(tmp_path):
    with contextlib.suppress(ZeroDivisionError), replacing(tmp_path / "file", durable=False) as temporary:
        temporary.write_text("ne")
        assert 1 // 0
    assert list(tmp_path.iterdir()) == []


def test_what_need_not_be_durable_does_not_wait_for_the_disk(tmp_path, synced):
    write_whole(tmp_path / "file", b"new", durable=False)
    assert (synced, (tmp_path / "file").read_bytes()) == ([], b"new")


SETTINGS = {"seed": 0, "optimizer": {"learning_rate": 0.1, "betas": (0.9, 0.99)}, "clients": None}
OTHERS = {
    "another value": (SETTINGS | {"seed": 1}, "a run with seed 0, now it is 1: choose another folder"),
    "another value further down": (
        SETTINGS | {"optimizer": {"learning_rate": 0.2, "betas": (0.9, 0.99)}},
        "a run with optimizer.learning_rate 0.1, now it is 0.2: ",
    ),
    "a key too many": (SETTINGS | {"alone": 3}, "a run with alone None, now it is 3: "),
    "several": ({"seed": 1} | SETTINGS | {"seed": 1, "clients": 3, "alone": 3}, "a run with seed 0, now it is 1: "),
    "a key too few": ({"seed": 0, "clients": None}, r"a run with optimizer.learning_rate 0.1, now it is None: "),
}


def test_a_folder_belongs_to_settings_once_they_claim_it(tmp_path):
    for _ in range(2):
        claim(tmp_path / "run.json", SETTINGS, "a run", "choose another folder")
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


@pytest.mark.parametrize("difference", OTHERS)
def test_a_folder_that_belongs_to_other_settings_is_refused_with_the_first_difference(tmp_path, difference):
    settings, sentence = OTHERS[difference]
    claim(tmp_path / "run.json", SETTINGS, "a run", "choose another folder")
    with pytest.raises(FolderInUseError, match=f"^{tmp_path} has {sentence}"):
        claim(tmp_path / "run.json", settings, "a run", "choose another folder")


def test_each_new_folder_is_on_the_disk_in_the_one_above(tmp_path, synced):
    make_folder(tmp_path / "a/b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
    synced.clear()
    make_folder(tmp_path / "a/b")
    assert synced == []


def test_the_folder_of_a_new_client_is_on_the_disk_with_its_state(tmp_path, synced):
    ClientStates(tmp_path / "states", [], keeps_optimizer=True).save("client", 0, {}, None)
    assert {tmp_path, tmp_path / "states", tmp_path / "states/client"} <= set(synced)


def test_result_has_versions_and_leaves_no_temporary_file(tmp_path):
    write_result(tmp_path / "result.json", accuracy={"best": 0.5}, seed=3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["accuracy"] == {"best": 0.5}
    assert result["seed"] == 3
    assert result["versions"]["openfl"] == "1.7.1"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_of_a_later_version_is_refused_by_name_and_its_settings_stay(tmp_path):
    path = tmp_path / "run.json"
    claim(path, {"mode": "simulated"}, "a run", "choose another")
    assert json.loads(path.read_text()) == {"format": CLAIM_FORMAT, "version": written_by(), "mode": "simulated"}
    later = json.dumps({"format": 2, "version": "9.1", "mode": "simulated"})
    path.write_text(later)
    sentence = r"run\.json has format 2, written by openfl-audio 9\.1: this is openfl-audio"
    for read in (read_claim, lambda path: claim(path, {"mode": "simulated"}, "a run", "choose another")):
        with pytest.raises(FormatError, match=sentence):
            read(path)
    assert path.read_text() == later


@pytest.mark.parametrize("found", [0, -1, "2", None, 1.5, True, 3])
def test_what_is_no_known_format_is_refused(tmp_path, found):
    with pytest.raises(FormatError, match=f"has format {found!r}, written by openfl-audio of a version that"):
        check_format(tmp_path / "a.json", {"format": found}, 2)
    check_format(tmp_path / "a.json", stamp(2), 2)
    check_format(tmp_path / "a.json", {}, 2)
