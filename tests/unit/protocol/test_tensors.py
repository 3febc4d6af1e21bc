import json
import tracemalloc
import zlib
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from openfl_audio.errors import TensorFormatError
from openfl_audio.protocol.tensors import (
    CHUNK_BYTES,
    DTYPES,
    MAX_HEADER_BYTES,
    Header,
    TensorFile,
    Tensors,
    describe,
    file_chunks,
    receive,
    stream,
    write_tensors,
)

METADATA = {"round": 3, "results": {"train": {"size": 2, "metrics": {"loss": 0.25}}}, "envoy": 'ä "b" \\'}


def make_tensors() -> Tensors:
    """One tensor of each type, and the shapes that are easily forgotten."""
    generator = np.random.default_rng(0)
    typed = {f"of type {name}": (generator.normal(size=(2, 3)) * 100).astype(dtype) for name, dtype in DTYPES.items()}
    return typed | {
        "scalar": np.array(3),
        "empty": np.zeros((0, 4), np.float16),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "every other": np.arange(10, dtype=np.float32)[::2],
        "a name of 'any' kind, ü": np.ones(1, np.float32),
    }


def assert_same(came: Tensors, tensors: Tensors) -> None:
    assert came.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert came[name].dtype == tensor.dtype, name
        assert came[name].shape == tensor.shape, name
        np.testing.assert_array_equal(came[name], tensor, err_msg=name)


def framed(content: Any, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def test_tensors_and_metadata_come_back_as_they_were():
    came, metadata = receive(stream(make_tensors(), METADATA))
    assert_same(came, make_tensors())
    assert metadata == METADATA


def test_tensors_that_came_may_be_written_to():
    came, _ = receive(stream(make_tensors(), {}))
    came["of type F32"] += 1
    np.testing.assert_array_equal(came["of type F32"], make_tensors()["of type F32"] + 1)


@pytest.mark.parametrize("tensors", [{}, {"nothing": np.zeros((0, 2), np.float32)}])
def test_no_bytes_at_all_are_fine_too(tmp_path, tensors):
    assert_same(receive(stream(tensors, {}))[0], tensors)
    write_tensors(tmp_path / "file", tensors, {"a": 1})
    with TensorFile(tmp_path / "file") as file:
        assert_same(file.load(), tensors)
        assert file.header.metadata == {"a": 1}
        assert_same(receive(file.chunks())[0], tensors)


def test_a_file_of_ours_is_one_of_the_safetensors_library(tmp_path):
    write_tensors(tmp_path / "file.safetensors", make_tensors(), METADATA)
    assert_same(safetensors.numpy.load_file(tmp_path / "file.safetensors"), make_tensors())


def test_a_file_of_the_safetensors_library_is_one_of_ours(tmp_path):
    # The library takes an array's memory as it lies.
    tensors = {name: np.require(tensor, requirements="C") for name, tensor in make_tensors().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "file.safetensors", {"written by": "the library"})
    with TensorFile(tmp_path / "file.safetensors") as file:
        assert_same(file.load(), tensors)
        assert file.header.metadata == {}


def test_every_tensor_begins_at_a_multiple_of_its_item_size():
    header = describe(make_tensors(), {"odd": "x"})
    assert len(header.encode()) % 8 == 0
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in header.entries.values())


def test_slices_of_a_tensor_are_read_flat(tmp_path):
    write_tensors(tmp_path / "file", make_tensors(), {})
    with TensorFile(tmp_path / "file") as file:
        np.testing.assert_array_equal(file.read("transposed"), [0, 3, 1, 4, 2, 5])
        np.testing.assert_array_equal(file.read("transposed", 1, 3), [3, 1])
        np.testing.assert_array_equal(file.read("scalar"), [3])
        assert file.read("empty").size == 0


def test_after_a_packed_header_pieces_are_of_one_size_and_their_sum_is_the_file(tmp_path):
    tensors = {"a": np.arange(CHUNK_BYTES // 2, dtype=np.float32), "b": np.arange(5, dtype=np.float16)}
    write_tensors(tmp_path / "file", tensors, METADATA)
    with TensorFile(tmp_path / "file") as file:
        for pieces in (list(stream(tensors, METADATA)), list(file.chunks())):
            assert [len(piece) for piece in pieces[1:]] == [CHUNK_BYTES, CHUNK_BYTES, 10]
            assert Header.unpack(pieces[0]) == file.header
            assert b"".join([file.header.encode(), *pieces[1:]]) == (tmp_path / "file").read_bytes()
    assert b"".join(file_chunks(tensors, METADATA)) == (tmp_path / "file").read_bytes()


def test_pieces_of_a_file_are_as_large_as_each_is_wanted(tmp_path):
    tensors = {"a": np.arange(5, dtype=np.float32), "b": np.arange(3, dtype=np.float16)}  # 26 bytes
    write_tensors(tmp_path / "file", tensors, METADATA)
    data = (tmp_path / "file").read_bytes()[-26:]
    with TensorFile(tmp_path / "file") as file:
        for sizes, expected in ((repeat(9), [9, 9, 8]), (iter([1, 22, 50]), [1, 22, 3])):
            _, *whole = file.chunks(sizes)
            assert [len(piece) for piece in whole] == expected
            assert b"".join(whole) == data
        _, *halves = file.chunks_with_floats_as("<f2", repeat(5))
        assert [len(piece) for piece in halves] == [4, 4, 2, 4, 2]


def test_a_packed_header_comes_back_and_is_small():
    header = describe({f"encoder.layers.{index}.weight": np.zeros(3, np.float32) for index in range(500)}, METADATA)
    assert Header.unpack(header.pack()) == header
    assert len(header.pack()) < len(header.encode()) / 4


PACKED_FAULTS = {
    "nothing": b"",
    "other bytes": b"hello, this is no header",
    "a header that is not packed": describe({"a": np.zeros(3)}, {}).encode(),
    "a packed header cut short": describe({"a": np.zeros(3)}, {}).pack()[:-5],
    "other bytes, packed": zlib.compress(b"hello"),
    "nothing, packed": zlib.compress(b""),
    "far too much, packed": zlib.compress(bytes(MAX_HEADER_BYTES + 1)),
}


@pytest.mark.parametrize("fault", PACKED_FAULTS)
def test_a_packed_header_that_is_none_raises_and_is_never_unpacked_beyond_the_limit(fault):
    tracemalloc.start()
    try:
        with pytest.raises(TensorFormatError, match="not a (compressed|safetensors) header"):
            Header.unpack(PACKED_FAULTS[fault])
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_HEADER_BYTES
    finally:
        tracemalloc.stop()


def test_floats_are_converted_on_the_way_and_nothing_else(tmp_path):
    tensors = {
        "wide": np.linspace(-7, 7, CHUNK_BYTES // 2 + 5),  # more than one piece of float16
        "float": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
        "half": np.ones(3, np.float16),
        "steps": np.array(2**40),
        "mask": np.array([True, False]),
        "scalar": np.array(0.5, np.float32),
        "empty": np.zeros((2, 0), np.float32),
    }
    write_tensors(tmp_path / "file", tensors, METADATA)
    expected = {name: t.astype(np.float16) if t.dtype.kind == "f" else t for name, t in tensors.items()}
    with TensorFile(tmp_path / "file") as file:
        came, metadata = receive(file.chunks_with_floats_as("<f2"))
    assert_same(came, expected)
    assert metadata == METADATA


@pytest.mark.parametrize("dtype", ["complex64", ">f4", "U3", "object"])
def test_a_type_that_cannot_travel_is_refused_by_name(dtype):
    with pytest.raises(TensorFormatError, match=r"tensor 'odd' is .*, which cannot be transmitted: use one of float64"):
        list(stream({"good": np.zeros(2), "odd": np.zeros(2, dtype)}, {}))


def entry(start: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BAD_HEADERS = {
    "nothing": b"",
    "fewer than eight bytes": b"\0" * 7,
    "no JSON": framed(b""),
    "a length above the bytes": framed({"a": entry()}, length=1000),
    "a length below the bytes": framed({"a": entry()}, length=2),
    "a length beyond all memory": framed({"a": entry()}, length=2**64 - 1),
    "half of the JSON": framed(json.dumps({"a": entry()}).encode()[:-3]),
    "bytes that are no text": framed(b"\xff" * 100),
    "a list": framed([entry()]),
    "a number": framed(7),
    "null": framed(None),
    "overlapping tensors": framed({"a": entry(0, 8), "b": entry(4, 12)}),
    "the same bytes twice": framed({"a": entry(0, 8), "b": entry(0, 8)}),
    "a gap": framed({"a": entry(0, 8), "b": entry(12, 20)}),
    "a gap at the start": framed({"a": entry(4, 12)}),
    "too few bytes for the shape": framed({"a": entry(0, 4)}),
    "too many bytes for the shape": framed({"a": entry(0, 16)}),
    "a negative start": framed({"a": entry(-8, 0)}),
    "an end before the start": framed({"a": entry(0, -8, (0,))}),
    "a negative length": framed({"a": entry(shape=[-1, -2])}),
    "a shape of more than 64 bits": framed({"a": entry(shape=[2**32, 2**32, 2**32])}),
    "a shape that overflows to the right size": framed({"a": entry(shape=[2**33, 2**31, 2], end=0, dtype="U8")}),
    "a bool as length": framed({"a": entry(0, 4, shape=[True])}),
    "a bool as start": framed({"a": entry(False, 8)}),
    "a bool as end": framed({"a": entry(0, True, [1], "U8")}),
    "a float as length": framed({"a": entry(shape=[2.0])}),
    "a float as end": framed({"a": entry(0, 8.0)}),
    "text as length": framed({"a": entry(shape=["2"])}),
    "a shape that is no list": framed({"a": entry(shape=2)}),
    "no shape": framed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "no offsets": framed({"a": {"dtype": "F32", "shape": [2]}}),
    "three offsets": framed({"a": entry() | {"data_offsets": [0, 8, 16]}}),
    "offsets that cannot be compared": framed({"a": entry(), "b": entry() | {"data_offsets": "no"}}),
    "an unknown type": framed({"a": entry(dtype="F128")}),
    "a type that is a list": framed({"a": entry(dtype=["F32"])}),
    "an entry that is no object": framed({"a": 7}),
    "deep nesting": framed(b"[" * 200_000 + b"]" * 200_000),
    "deep nesting in the metadata": framed({"__metadata__": {"openfl_audio": "[" * 200_000}}),
    "a number without end": framed(b'{"a": ' + b"1" * 10_000 + b"}"),
    "metadata that is no object": framed({"__metadata__": [1]}),
    "metadata that is no JSON": framed({"__metadata__": {"openfl_audio": "{"}}),
    "metadata that holds a list": framed({"__metadata__": {"openfl_audio": "[1]"}}),
    "metadata that is a number": framed({"__metadata__": {"openfl_audio": 3}}),
}


BAD_SHAPES = {
    "of more dimensions than an array can have": entry(0, 4, shape=[1] * 33),
    "of numbers that would take seconds to multiply": entry(shape=[int("9" * 4000)] * 320),
    "of more than any file holds": entry(shape=[0, 2**63], end=0),
}


@pytest.mark.parametrize("fault", BAD_SHAPES)
def test_a_shape_is_refused_before_anything_is_computed_from_it(fault):
    with pytest.raises(TensorFormatError, match=r"not a safetensors header: ValueError\('shape \[") as caught:
        Header.decode(framed({"a": BAD_SHAPES[fault]}))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fault", BAD_HEADERS)
def test_a_malformed_header_raises_one_error_with_a_short_text(fault):
    with pytest.raises(TensorFormatError, match="not a safetensors header") as caught:
        Header.decode(BAD_HEADERS[fault])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fault", BAD_HEADERS)
def test_a_file_with_a_malformed_header_raises_too(tmp_path, fault):
    (tmp_path / "file").write_bytes(BAD_HEADERS[fault] + bytes(8))
    with pytest.raises(TensorFormatError), TensorFile(tmp_path / "file"):
        pass


def test_a_header_that_promises_more_than_there_is_is_not_believed(tmp_path):
    huge = {"a": entry(0, 2**62, [2**62], "U8")}
    (tmp_path / "file").write_bytes(framed(huge) + bytes(8))
    with pytest.raises(TensorFormatError, match=r"file: \d+ bytes in place of 46116860184273\d+"):
        TensorFile(tmp_path / "file")


def test_a_header_longer_than_allowed_is_not_even_read(tmp_path):
    (tmp_path / "file").write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(TensorFormatError, match=f"not a safetensors header of {MAX_HEADER_BYTES + 1} bytes"):
        TensorFile(tmp_path / "file")


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_a_file_that_is_cut_short_raises(tmp_path, cut):
    write_tensors(tmp_path / "file", {"a": np.zeros(100, np.float32)}, {})
    whole = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(whole[:-cut])
    with pytest.raises(TensorFormatError, match=f"file: {len(whole) - cut} bytes in place of {len(whole)}"):
        TensorFile(tmp_path / "file")


def test_a_file_with_bytes_after_the_last_tensor_raises(tmp_path):
    write_tensors(tmp_path / "file", {"a": np.zeros(100, np.float32)}, {})
    with (tmp_path / "file").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TensorFormatError, match="in place of"):
        TensorFile(tmp_path / "file")


def test_a_file_that_shrinks_while_it_is_open_raises(tmp_path):
    write_tensors(tmp_path / "file", {"a": np.zeros(100, np.float32)}, {})
    with TensorFile(tmp_path / "file") as file:
        with (tmp_path / "file").open("r+b") as other:
            other.truncate(200)
        with pytest.raises(TensorFormatError, match="ends at byte 200"):
            file.read("a")


def cut_short(pieces: Iterable[bytes]) -> list[bytes]:
    *first, last = pieces
    return [*first, last[:-1]]


def test_a_stream_that_ends_early_or_late_raises():
    tensors = {"a": np.zeros(10, np.float32)}
    with pytest.raises(TensorFormatError, match="39 bytes of 40"):
        receive(cut_short(stream(tensors, {})))
    with pytest.raises(TensorFormatError, match="more than the 40 bytes"):
        receive([*stream(tensors, {}), b"x"])
    with pytest.raises(TensorFormatError, match="not a compressed header"):
        receive([])


def test_sending_and_reading_hold_pieces_and_receiving_holds_the_tensors_once(tmp_path):
    tensors = {f"layer {index}": np.ones(1_000_000, np.float32) for index in range(5)}  # 20 MB
    write_tensors(tmp_path / "file", tensors, {})
    size = (tmp_path / "file").stat().st_size

    def peak_of(pieces: Iterable[bytes]) -> int:
        tracemalloc.start()
        try:
            for _ in pieces:
                continue
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_of(stream(tensors, {})) < 3 * CHUNK_BYTES
    with TensorFile(tmp_path / "file") as file:
        assert peak_of(file.chunks()) < 3 * CHUNK_BYTES
        # A piece of float16 is read as float32 of twice that size.
        assert peak_of(file.chunks_with_floats_as("<f2")) < 6 * CHUNK_BYTES
        tracemalloc.start()
        try:
            receive(file.chunks())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < size + 3 * CHUNK_BYTES
