import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openfl_audio.errors import FormatError, RecordError
from openfl_audio.formats import written_by
from openfl_audio.protocol.record import NO_HASH, Record, entry_of, read_record, sha256_of, sha256_of_names

OWNER = "envoy 'site-a'"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site-a" / "record.jsonl"


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_chain(path: Path) -> None:
    before = NO_HASH
    for number, line in enumerate(read_record(path), start=1):
        assert (entry_of(line)["number"], entry_of(line)["before"]) == (number, before)
        before = sha256_of(line)


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """As on a full disk, a file gets so many bytes and then an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_each_entry_has_the_hash_of_the_one_before_and_a_later_process_adds_to_them(path):
    record = Record(path, OWNER)
    record.append("submitted", experiment="x", by="user 'ada'")
    record.note("received", experiment="x", round=0)
    again = Record(path, OWNER)
    again.append("ended", experiment="x")
    assert [entry["event"] for entry in entries(path)] == ["begun", "submitted", "received", "ended"]
    assert entries(path)[0]["owner"] == OWNER
    check_chain(path)
    assert again.head == (4, sha256_of(path.read_bytes().splitlines()[-1]))
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_processes_add_to_one_record_in_turn(path):
    record = Record(path, OWNER)
    record.append("started")
    code = "import sys, pathlib; from openfl_audio.protocol.record import Record\n"
    code += "record = Record(pathlib.Path(sys.argv[1]), sys.argv[2])\nfor n in range(50): record.note('b', n=n)"
    with subprocess.Popen([sys.executable, "-c", code, str(path), OWNER]) as other:
        while other.poll() is None:
            record.note("a")
    record.note("end")
    assert other.returncode == 0
    check_chain(path)
    assert sum(entry["event"] == "b" for entry in entries(path)) == 50


@pytest.mark.parametrize("rest", [b'{"number": 3, "ti', bytes(300), b'{"number": 3}\n' + bytes(70_000)])
def test_what_a_power_cut_left_of_a_line_goes_away_and_that_is_said(path, rest):
    Record(path, OWNER).append("started")
    with path.open("ab") as file:
        file.write(rest)
    Record(path, OWNER).append("ended")
    check_chain(path)
    events = [(entry["event"], entry.get("cut_bytes")) for entry in entries(path)]
    assert events == [("begun", None), ("started", None), ("repaired", len(rest)), ("ended", None)]


def test_a_full_disk_loses_no_entry_and_changes_no_order(path):
    record = Record(path, OWNER)
    record.append("started")
    size = path.stat().st_size
    with files_up_to(size + 20):
        record.note("received", envoy="a")
        record.note("received", envoy="b")
        with pytest.raises(OSError, match="File too large"):
            record.sync()
        with pytest.raises(OSError, match="File too large"):
            record.append("approved")
        assert record.head.number == 2
    record.append("ended")
    check_chain(path)
    assert [(entry["event"], entry.get("envoy")) for entry in entries(path)][2:] == [
        ("received", "a"),
        ("received", "b"),
        ("ended", None),
    ]


def test_only_what_was_brought_to_the_disk_is_a_head(path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or fsync(file))
    record = Record(path, OWNER)
    record.append("started")
    head, n_synced = record.head, len(synced)
    record.note("received")
    assert record.head == head
    assert len(synced) == n_synced
    assert record.sync().number == record.head.number == head.number + 1
    assert len(synced) == n_synced + 1


def test_a_record_that_was_cut_while_its_process_ran_says_so(path, caplog):
    record = Record(path, OWNER)
    for n in range(4):
        record.append("started", n=n)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    record.append("ended")
    assert f"{path} ends at entry 2, and had 5" in caplog.text
    assert [(entry["event"], entry.get("entries")) for entry in entries(path)][2:] == [
        ("shortened", 3),
        ("ended", None),
    ]


def test_long_lines_are_found_from_the_end(path):
    record = Record(path, OWNER)
    record.append("started", names=["x" * 64] * 2000)
    Record(path, OWNER).append("ended")
    check_chain(path)
    assert len(entries(path)) == 3


def test_a_record_of_a_later_version_or_of_somebody_else_is_refused_by_name(path):
    Record(path, OWNER).append("started")
    with pytest.raises(RecordError, match="is the record of envoy 'site-a', not of envoy 'site-b'"):
        Record(path, "envoy 'site-b'")
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    later = rf"record.jsonl has format 2, written by openfl-audio {written_by()}: this is openfl-audio "
    with pytest.raises(FormatError, match=later):
        Record(path, OWNER)
    with pytest.raises(FormatError, match=later):
        list(read_record(path))


def test_the_digest_of_names_is_that_of_a_sorted_list_of_lines():
    # printf 'a\nb\n' | sha256sum
    expected = "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
    assert sha256_of_names(["b", "a"]) == expected
