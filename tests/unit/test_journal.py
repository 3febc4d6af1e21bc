import json
import os
from pathlib import Path

import pytest

from openfl_audio import files
from openfl_audio.files import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps({"round": number}) + "\n" for number in range(100)))
    return path


def test_a_long_journal_is_opened_without_reading_what_its_records_say(path, monkeypatch):
    parsed, loads = [], json.loads
    monkeypatch.setattr(files.json, "loads", lambda line: parsed.append(line) or loads(line))
    journal = Journal(path, most=90)
    assert (len(journal), journal.last) == (90, {"round": 89})
    assert len(parsed) == 1
    assert [record["round"] for record in journal.latest(3 * len('{"round": 10}\n'))] == [87, 88, 89]


@pytest.mark.parametrize("damaged", [b'{"round": 9', b'{"rou}\n', b"no record\n", b'{"round": \0\0}\n', bytes(14)])
def test_what_is_no_record_at_the_end_is_left_out_and_written_over(path, damaged, caplog):
    path.write_bytes(path.read_bytes() + damaged)
    journal = Journal(path, most=101)
    assert (len(journal), journal.last) == (100, {"round": 99})
    assert f"{path}: line 101 is no record" in caplog.text
    journal.append({"round": 100}, durable=True)
    assert Journal(path, most=101).last == {"round": 100}
    assert len(path.read_text().splitlines()) == 101


def test_a_record_that_could_not_be_written_is_added_once(path, monkeypatch):
    journal = Journal(path)
    sync = os.fsync

    def fail(descriptor: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no room"):
        journal.append({"round": 100}, durable=True)
    assert len(journal) == 100
    monkeypatch.setattr(os, "fsync", sync)
    journal.append({"round": 100, "again": True}, durable=True)
    assert [record["round"] for record in Journal(path)] == list(range(101))
    assert Journal(path).last == {"round": 100, "again": True}


@pytest.mark.parametrize(("max_bytes", "parts"), [(0, [1, 1, 1, 1]), (30, [2, 2]), (10**6, [4])])
def test_lines_come_many_at_a_time_as_each_by_itself(tmp_path, max_bytes, parts):
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(4):
        journal.append({"number": number}, durable=False)  # 14 bytes
    found, got = [], []
    while len(got) < len(journal):
        found.append(journal.lines(len(got), max_bytes))
        got += found[-1]
    assert [len(each) for each in found] == parts
    assert got == [journal.line(number) for number in range(4)]
