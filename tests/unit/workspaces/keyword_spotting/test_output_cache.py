import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workspaces.keyword_spotting import output_cache
from workspaces.keyword_spotting.output_cache import CacheError, OutputStore, clip_key, open_store

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parents[4]
SHAPE = (3, 4)
CLIP_BYTES = 2 * 3 * 4 + 32
PLENTY = 1_000_000


def keys(*numbers: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in numbers]


def outputs(*numbers: int) -> np.ndarray:
    """Return outputs that hold each clip's number (up to 2,000) and what makes its places distinct."""
    return np.stack([np.append(np.arange(11), number) for number in numbers]).astype(np.float16).reshape(-1, *SHAPE)


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A process that has `keys`, `outputs` and OutputStore."""
    preamble = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(Path(__file__).parent)!r}]\n"
    preamble += "from test_output_cache import *\n"
    command = [sys.executable, "-c", preamble + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_is_kept_comes_back_in_this_process_and_in_the_next(tmp_path):
    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    assert store.find(keys(1, 2)) == [-1, -1]
    first = store.add(keys(1, 2), outputs(1, 2))
    second = store.add(keys(2, 3), outputs(2, 3))
    assert second[0] == first[1]
    for each in (store, OutputStore(tmp_path, "a", SHAPE, PLENTY)):
        assert len(each) == 3
        found = each.read(each.find(keys(3, 1, 2)))
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, outputs(3, 1, 2))
    assert (tmp_path / "a" / "outputs").stat().st_size == 3 * 24


def test_a_clip_that_comes_twice_is_kept_once(tmp_path):
    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    slots = store.add(keys(1, 1, 2), outputs(1, 1, 2))
    assert slots[0] == slots[1] != slots[2]
    assert len(store) == 2


def test_a_clips_key_is_that_of_its_samples():
    waveform = np.linspace(-1, 1, 100, dtype=np.float32)
    assert clip_key(waveform) == clip_key(waveform.copy()) == clip_key(np.repeat(waveform, 2)[::2])
    changed = waveform.copy()
    changed[50] += 1e-6
    assert len({clip_key(waveform), clip_key(changed), clip_key(waveform[:-1])}) == 3


def test_a_full_cache_keeps_what_it_has_and_says_once_that_it_takes_no_more(tmp_path, caplog):
    store = OutputStore(tmp_path, "a", SHAPE, limit_bytes=3 * CLIP_BYTES + 10)
    assert -1 not in store.add(keys(1, 2), outputs(1, 2))
    with caplog.at_level(logging.WARNING):
        slots = store.add(keys(3, 4, 5), outputs(3, 4, 5))
        assert store.add(keys(6), outputs(6)) == [-1]
    assert slots[1:] == [-1, -1]
    assert len(store) == 3
    np.testing.assert_array_equal(store.read(store.find(keys(1, 2, 3))), outputs(1, 2, 3))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 3 * CLIP_BYTES + 10
    [line] = [record.getMessage() for record in caplog.records]
    assert "OPENFL_AUDIO_CACHE_GB" in line
    assert "the outputs of 3 clips are kept, those of further clips are computed each time" in line


def test_room_is_made_by_the_store_that_was_used_longest_ago_and_is_open_nowhere(tmp_path):
    limit = 4 * CLIP_BYTES
    for name in ("old", "older", "open"):
        store = OutputStore(tmp_path, name, SHAPE, limit)
        store.add(keys(1), outputs(1))
        del store
    for age, name in ((100, "old"), (200, "older"), (300, "open")):
        os.utime(tmp_path / name / "in_use", (age_time := 1_700_000_000 - age, age_time))
    # The oldest of all, but another process has it open.
    other = start(
        "store = OutputStore(Path(sys.argv[1]), 'open', SHAPE, PLENTY)\n"
        "os.utime(Path(sys.argv[1]) / 'open' / 'in_use', (1, 1)); print('ready', flush=True); input()",
        tmp_path,
    )
    try:
        assert other.stdout.readline() == "ready\n"
        store = OutputStore(tmp_path, "new", SHAPE, limit)
        assert -1 not in store.add(keys(1, 2), outputs(1, 2))
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "old", "open", "new"}
        assert -1 not in store.add(keys(3), outputs(3))
        assert store.add(keys(4), outputs(4)) == [-1]
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "open", "new"}
    finally:
        other.communicate("\n", timeout=60)
    assert -1 not in store.add(keys(4), outputs(4))
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "new"}


def test_two_processes_share_one_store(tmp_path):
    """Both want the same 60 clips, in other orders and a few at a time."""
    code = """
order = np.random.default_rng(int(sys.argv[2])).permutation(60)
store = OutputStore(Path(sys.argv[1]), "a", SHAPE, PLENTY)
print("ready", flush=True); input()
for three in order.reshape(20, 3):
    assert -1 not in store.add(keys(*three), outputs(*three))
    np.testing.assert_array_equal(store.read(store.find(keys(*three))), outputs(*three))
np.testing.assert_array_equal(store.read(store.find(keys(*range(60)))), outputs(*range(60)))
"""
    both = [start(code, tmp_path, seed) for seed in (1, 2)]
    try:
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in both:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in both:
            process.kill()
    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    assert len(store) == 60
    np.testing.assert_array_equal(store.read(store.find(keys(*range(60)))), outputs(*range(60)))


def test_a_process_killed_while_it_writes_leaves_whole_entries_only(tmp_path):
    code = """
store = OutputStore(Path(sys.argv[1]), "a", SHAPE, PLENTY)
for number in range(len(store), 200_000, 3):
    store.add(keys(number, number + 1, number + 2), outputs(number, number + 1, number + 2))
    print(number, flush=True)
"""
    for seed in range(3):
        process = start(code, tmp_path)
        try:
            first = process.stdout.readline()
            # Anywhere in a write, or between two.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=np.random.default_rng(seed).uniform(0.01, 0.1))
        finally:
            process.kill()
            told, _ = process.communicate()
        store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
        assert len(store) >= int((first + told).split("\n")[-2]) + 3  # what it told of is there
        np.testing.assert_array_equal(store.read(store.find(keys(*range(len(store))))), outputs(*range(len(store))))


@pytest.mark.parametrize("half_a_key", [0, 20])
def test_what_a_killed_writer_left_behind_is_written_over(tmp_path, half_a_key):
    OutputStore(tmp_path, "a", SHAPE, PLENTY).add(keys(1), outputs(1))
    with (tmp_path / "a" / "outputs").open("ab") as file:
        file.write(b"\x7f" * 60)  # two slots and a half
    with (tmp_path / "a" / "keys").open("ab") as file:
        file.write(keys(2)[0][:half_a_key])
    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    assert store.find(keys(1, 2)) == [0, -1]
    store.add(keys(3, 2), outputs(3, 2))
    again = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    assert len(again) == 3
    np.testing.assert_array_equal(again.read(again.find(keys(1, 2, 3))), outputs(1, 2, 3))


def test_a_slot_without_its_key_is_no_entry_nor_a_key_without_its_slot(tmp_path, monkeypatch):
    """Killed between its two writes, over what an earlier one left in the place of the next slots."""
    OutputStore(tmp_path, "a", SHAPE, PLENTY).add(keys(1), outputs(1))
    with (tmp_path / "a" / "outputs").open("ab") as file:
        file.write(b"\x7f" * 60)
    writes = [output_cache._write_at, lambda *_: None]
    with monkeypatch.context() as patch:
        patch.setattr(output_cache, "_write_at", lambda *arguments: writes.pop(0)(*arguments))
        OutputStore(tmp_path, "a", SHAPE, PLENTY).add(keys(2, 3), outputs(2, 3))
    assert not writes
    assert OutputStore(tmp_path, "a", SHAPE, PLENTY).find(keys(1, 2, 3)) == [0, -1, -1]


def test_a_key_whose_slot_was_lost_never_stands_for_another_clip(tmp_path):
    """A machine that loses power may lose the end of one file and not of the other."""
    OutputStore(tmp_path, "a", SHAPE, PLENTY).add(keys(1, 2, 3), outputs(1, 2, 3))
    os.truncate(tmp_path / "a" / "outputs", 24 + 20)
    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    assert store.find(keys(1, 2, 3)) == [0, -1, -1]
    # As if this process were killed between the slots and their keys.
    with pytest.MonkeyPatch.context() as patch:
        write = output_cache._write_at
        patch.setattr(output_cache, "_write_at", lambda path, *rest: path.name == "outputs" and write(path, *rest))
        store.add(keys(4, 5), outputs(4, 5))
    assert OutputStore(tmp_path, "a", SHAPE, PLENTY).find(keys(1, 2, 3, 4)) == [0, -1, -1, -1]


def test_outputs_of_another_shape_raise(tmp_path):
    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    with pytest.raises(ValueError, match=r"outputs of shape \(4, 3\), where \(3, 4\) was expected"):
        store.add(keys(1), outputs(1).reshape(1, 4, 3))
    assert len(store) == 0


def test_a_disk_that_takes_no_more_ends_no_training(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = OutputStore(tmp_path, "a", SHAPE, PLENTY)
    store.add(keys(1), outputs(1))
    monkeypatch.setattr(output_cache, "_write_at", full)
    assert store.add(keys(1, 2), outputs(1, 2)) == [0, -1]
    assert "cannot be written (No space left on device): the outputs of 1 clips are kept" in caplog.text


def test_the_environment_says_where_the_cache_is_and_how_large(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENFL_AUDIO_CACHE_GB", "1.5")
    store = open_store("a", SHAPE)
    assert store.folder == tmp_path / "cache" / "encoder_outputs" / "a"
    assert store.limit_bytes == 1_500_000_000
    assert open_store("a", SHAPE) is store  # opened once
    monkeypatch.delenv("OPENFL_AUDIO_CACHE_GB")
    assert open_store("a", SHAPE).limit_bytes == 20_000_000_000
    monkeypatch.delenv("OPENFL_AUDIO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("a", SHAPE).root == tmp_path / "home" / ".cache" / "openfl-audio" / "encoder_outputs"


def test_a_cache_that_cannot_be_had_raises(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"cannot be used \(Not a directory\); set OPENFL_AUDIO_CACHE to a folder"):
        open_store("a", SHAPE)
    monkeypatch.setenv("OPENFL_AUDIO_CACHE_GB", "much")
    with pytest.raises(CacheError, match="OPENFL_AUDIO_CACHE_GB: 'much' should be a number of gigabytes"):
        open_store("a", SHAPE)
