"""An update is written while it arrives: whole and in order, or it is none."""

import asyncio
import errno
import io
import itertools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np
import pytest

from openfl_audio.director.update_file import SMALL_CHUNK_BYTES, PassingValues, write_update
from openfl_audio.errors import BrokenUploadError, TensorFormatError, UpdateRefusedError
from openfl_audio.protocol.tensors import Header, TensorFile, describe

VALUES = np.random.default_rng(0).standard_normal(600_000).astype(np.float32)
HEADER = describe({"weight": VALUES}, {"round": 3})


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    chunks, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(data):
            return chunks
        chunks.append(data[start : start + size])
        start += size
    raise AssertionError("unreachable")


async def arriving(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


def write(path: Path, chunks: Iterable[bytes], header: Header = HEADER) -> int:
    path.touch()
    return asyncio.run(write_update(path, header, arriving(chunks), "update of 'a'", PassingValues(header)))


@pytest.mark.parametrize(
    "sizes",
    [(1 << 20,), (1000,), (SMALL_CHUNK_BYTES, SMALL_CHUNK_BYTES - 1, 7, 3 * SMALL_CHUNK_BYTES + 5)],
    ids=["large", "small", "mixed"],
)
def test_chunks_of_any_size_are_written_in_order(tmp_path, sizes):
    assert write(tmp_path / "update", cut(VALUES.tobytes(), sizes)) == VALUES.nbytes
    with TensorFile(tmp_path / "update") as file:
        assert file.header == HEADER
        np.testing.assert_array_equal(file.read("weight"), VALUES)


def test_a_shorter_update_replaces_a_longer_one_whole(tmp_path):
    write(tmp_path / "update", cut(VALUES.tobytes(), [1 << 20]))
    short = describe({"weight": VALUES[:10]}, {})
    write(tmp_path / "update", [VALUES[:10].tobytes()], short)
    with TensorFile(tmp_path / "update") as file:
        np.testing.assert_array_equal(file.read("weight"), VALUES[:10])


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (
            lambda data: data + bytes(SMALL_CHUNK_BYTES),
            UpdateRefusedError,
            "update of 'a': larger than the 2400000 bytes",
        ),
        (lambda data: data[:-4], BrokenUploadError, "update of 'a': ends after 2399996 of 2400000 bytes"),
    ],
    ids=["too many bytes", "too few bytes"],
)
def test_what_has_another_length_than_it_says_is_no_update(tmp_path, change, error, sentence):
    with pytest.raises(error, match=sentence):
        write(tmp_path / "update", cut(change(VALUES.tobytes()), [1 << 19]))
    with pytest.raises(TensorFormatError):
        TensorFile(tmp_path / "update")


@pytest.mark.parametrize("length", [1 << 20, VALUES.nbytes % (1 << 20)], ids=["the first chunk", "the last chunk"])
def test_a_write_that_fails_in_its_thread_ends_the_update(tmp_path, monkeypatch, length):
    path = tmp_path / "update"
    path.touch()

    class Full(io.BufferedRandom):
        def write(self, data, /):
            if len(data) == length:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(io.FileIO(self, "r+")))
    with pytest.raises(OSError, match="No space left"):
        write(path, cut(VALUES.tobytes(), [1 << 20]))


def test_an_update_that_is_cancelled_while_a_chunk_is_written_is_none(tmp_path):
    path = tmp_path / "update"
    path.touch()

    async def stalls() -> AsyncIterator[bytes]:
        yield VALUES.tobytes()[: 1 << 20]
        await asyncio.Event().wait()

    async def cancel() -> None:
        writing = asyncio.create_task(write_update(path, HEADER, stalls(), "update of 'a'", PassingValues(HEADER)))
        while not path.stat().st_size > 1 << 20:
            await asyncio.sleep(0.001)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    asyncio.run(cancel())
    with pytest.raises(TensorFormatError):
        TensorFile(path)


# In the order of their bytes: wide types first.
MIXED = {
    "a": np.ones(3, np.float64),
    "counter": np.array([np.iinfo(np.int64).max]),
    "b": np.ones((5, 7), np.float32),
    "empty": np.ones((0, 4), np.float32),
    "c": np.ones(9, np.float16),
    "flags": np.array([255, 255, 255], np.uint8),
}
MIXED_HEADER = describe(MIXED, {})


def are_doubtful(tensors: dict[str, np.ndarray], size: int) -> bool:
    data = b"".join(tensors[name].tobytes() for name in MIXED_HEADER.entries)
    values = PassingValues(MIXED_HEADER)
    for chunk in cut(data, [size]):
        values.add(chunk)
    return values.are_doubtful


@pytest.mark.parametrize("size", [1, 3, 8, 13, 100, 1000])
def test_a_value_that_cannot_be_added_is_seen_as_it_passes_however_chunks_cut_it(size):
    assert not are_doubtful(MIXED, size)
    for name, at, value in [("a", 2, np.nan), ("b", 34, np.inf), ("b", 0, -2e15), ("c", 8, np.nan), ("a", 0, 1e300)]:
        tensors = {key: tensor.copy() for key, tensor in MIXED.items()}
        tensors[name].reshape(-1)[at] = value
        assert are_doubtful(tensors, size), (name, at, value)
