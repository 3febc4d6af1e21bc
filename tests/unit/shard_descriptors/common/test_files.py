"""Recordings are listed alike wherever their folder was made."""

import os
import unicodedata
from pathlib import Path

from shard_descriptors.common.files import list_folders, list_recordings, name_key


def listed(root: Path) -> tuple[list[str], dict[str, str]]:
    left_out: dict[str, str] = {}
    return list_recordings(root, "yes", ".wav", left_out), left_out


def test_capitals_are_read_and_what_is_no_recording_is_passed_over(tmp_path):
    (tmp_path / "yes/folder.wav").mkdir(parents=True)
    for name in ("b.WAV", "a.wav", "._a.wav", ".hidden.wav", "Thumbs.db", ".DS_Store", "a.txt"):
        (tmp_path / "yes" / name).touch()
    assert listed(tmp_path) == (["yes/a.wav", "yes/b.WAV"], {})


def test_recordings_that_cannot_be_taken_are_named_with_the_reason(tmp_path):
    (tmp_path / "yes").mkdir()
    nfc, nfd = (unicodedata.normalize(form, "über.wav") for form in ("NFC", "NFD"))
    for name in ("a.wav", "a.WAV", "c.mp3", nfc, nfd):
        (tmp_path / "yes" / name).touch()
    Path(os.fsdecode(os.fsencode(tmp_path / "yes") + b"/caf\xe9.wav")).touch()
    found, left_out = listed(tmp_path)
    assert found == ["yes/a.WAV", f"yes/{nfd}"]
    assert left_out == {
        "yes/a.wav": "has the same name as yes/a.WAV but for case or Unicode form",
        "yes/c.mp3": "is no .wav file",
        "yes/caf\\xe9.wav": "has a name that is not UTF-8",
        f"yes/{nfc}": f"has the same name as yes/{nfd} but for case or Unicode form",
    }


def test_a_link_that_goes_round_in_a_circle_is_no_folder(tmp_path):
    for name in ("yes", ".hidden", "__MACOSX", "$RECYCLE.BIN", "@eaDir", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "yes/loop.wav").symlink_to(tmp_path / "yes/loop.wav")
    assert list_folders(tmp_path) == ["yes"]
    assert listed(tmp_path) == (["yes/loop.wav"], {})  # the header of it says what is wrong


def test_a_key_is_the_same_for_case_separators_and_unicode_forms():
    nfd = unicodedata.normalize("NFD", "Über\\A.WAV")
    assert name_key(nfd) == name_key("über/a.wav")
    assert name_key("a/b.wav") != name_key("a/c.wav")
