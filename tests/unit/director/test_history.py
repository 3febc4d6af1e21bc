import json
from pathlib import Path

import pytest

from openfl_audio.director import history as history_module
from openfl_audio.director.history import History


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps({"round": number}) + "\n" for number in range(100)))
    return path


def test_a_long_history_is_opened_without_reading_what_its_records_say(path, monkeypatch):
    parsed, loads = [], json.loads
    monkeypatch.setattr(history_module.json, "loads", lambda line: parsed.append(line) or loads(line))
    history = History(path, rounds=90)
    assert (len(history), history.last) == (90, {"round": 89})
    assert len(parsed) == 1
    assert [record["round"] for record in history.latest(3 * len('{"round": 10}\n'))] == [87, 88, 89]


@pytest.mark.parametrize("damaged", [b'{"round": 9', b'{"rou}\n', b"no record\n", b'{"round": \0\0}\n', bytes(14)])
def test_what_is_no_record_at_the_end_is_left_out_and_written_over(path, damaged, caplog):
    path.write_bytes(path.read_bytes() + damaged)
    history = History(path, rounds=101)
    assert (len(history), history.last) == (100, {"round": 99})
    assert f"{path}: line 101 is no record" in caplog.text
    history.append({"round": 100})
    assert History(path, rounds=101).last == {"round": 100}
    assert len(path.read_text().splitlines()) == 101
