"""Models and updates as safetensors, written and read chunk by chunk.

The safetensors library reads and writes whole files, or maps them into memory, where every page read counts as the
process's own. A director must not hold the models that pass through it, so the format (eight bytes of header length,
a JSON header, then the tensors' bytes one after the other) is spelled out here. Its files are plain safetensors.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from openfl_audio.errors import TensorFormatError

Tensors = dict[str, np.ndarray]

# Each chunk costs as much as copying some hundred kilobytes. Where many transfers share a director, they use smaller
# ones: it has several chunks of each in memory.
CHUNK_BYTES = 1 << 20
# Some tens of thousands of tensors.
MAX_HEADER_BYTES = 8 << 20
# As many as every NumPy can hold.
MAX_DIMENSIONS = 32
# More is beyond any file. Without a bound, numbers of thousands of digits would be multiplied for seconds.
MAX_LENGTH = 1 << 63
MAX_METADATA_CHARACTERS = 64 << 10
METADATA_KEY = "openfl_audio"
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """The place of one tensor in a file.

    Attributes:
        dtype: the type of its values.
        shape: its shape.
        start: its first byte after the header.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @cached_property
    def count(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)  # not np.prod, which overflows silently

    @cached_property
    def n_bytes(self) -> int:
        """Return the number of bytes."""
        return self.count * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Tell whether the values are floating."""
        return self.dtype.kind == "f"

    def __str__(self) -> str:
        return f"{self.dtype}{self.shape}"


@dataclass(frozen=True)
class Header:
    """The content of a file.

    Attributes:
        entries: the tensors by name, in the order of their bytes.
        metadata: anything that JSON can hold.
    """

    entries: dict[str, Entry]
    metadata: dict[str, Any]

    @classmethod
    def lay_out(cls, shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: dict[str, Any]) -> "Header":
        """Return a header of tensors with these types and shapes.

        Wide types come first, so that every tensor starts at a multiple of its item size.
        """
        entries, start = {}, 0
        for name in sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name)):
            entries[name] = Entry(*shapes[name], start)
            start += entries[name].n_bytes
        return cls(entries, metadata)

    @property
    def data_bytes(self) -> int:
        """Return the number of bytes after the header."""
        return sum(entry.n_bytes for entry in self.entries.values())

    def with_metadata(self, metadata: dict[str, Any]) -> "Header":
        """Return a header of the same tensors with other metadata."""
        return Header(self.entries, metadata)

    def with_floats_as(self, dtype: str) -> "Header":
        """Return a header of the same tensors, floating ones as `dtype`."""
        shapes = {name: (np.dtype(dtype) if e.is_float else e.dtype, e.shape) for name, e in self.entries.items()}
        return Header.lay_out(shapes, self.metadata)

    def encode(self) -> bytes:
        """Return the header as it stands in a file.

        Raises TensorFormatError, naming the tensor, for a type that safetensors does not know.
        """
        content: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(self.metadata)}}
        for name, entry in self.entries.items():
            if entry.dtype not in NAMES:
                known = ", ".join(map(str, NAMES))
                sentence = f"tensor '{name}' is {entry.dtype}, which cannot be transmitted: use one of {known}"
                raise TensorFormatError(sentence)
            offsets = [entry.start, entry.start + entry.n_bytes]
            content[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def pack(self) -> bytes:
        """Return the header as it is transmitted: compressed.

        In a model of many small tensors it would be a tenth of all bytes.
        """
        return zlib.compress(self.encode())

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Return a header from what `pack` has made. Raises TensorFormatError."""
        decompressor = zlib.decompressobj()
        try:
            encoded = decompressor.decompress(data, MAX_HEADER_BYTES)
        except zlib.error as error:
            raise TensorFormatError(f"not a compressed header: {error}") from None
        if not decompressor.eof:
            raise TensorFormatError(f"not a compressed header, or one of more than {MAX_HEADER_BYTES} bytes")
        return cls.decode(encoded)

    @classmethod
    def decode(cls, data: bytes) -> "Header":
        """Return a header from what `encode` has made.

        Raises TensorFormatError for anything else, also for gaps between tensors.
        """
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size != len(data) - 8:
            raise TensorFormatError(f"not a safetensors header: {len(data)} bytes, which say they are {size}")
        try:
            content = json.loads(data[8:])
            text = content.pop("__metadata__", {}).get(METADATA_KEY, "{}")
            if len(text) > MAX_METADATA_CHARACTERS:
                raise ValueError(f"metadata of {len(text)} characters")
            metadata = json.loads(text)
            if not isinstance(metadata, dict):
                raise TypeError("its metadata is no object")
            entries = {}
            for name, described in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
                name.encode()  # JSON may spell what is no text
                entries[name] = _decode_entry(described)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise TensorFormatError(f"not a safetensors header: {error!r:.200}") from None
        end = 0
        for name, entry in entries.items():
            if entry.start != end or content[name]["data_offsets"][1] != end + entry.n_bytes:
                raise TensorFormatError(f"not a safetensors header: bytes of tensor '{name:.100}' do not fit its shape")
            end += entry.n_bytes
        return cls(entries, metadata)


def _decode_entry(described: dict[str, Any]) -> Entry:
    shape, (start, end) = described["shape"], described["data_offsets"]
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape {shape}")
    if not all(type(n) is int and 0 <= n < MAX_LENGTH for n in (*shape, start, end)):
        raise ValueError(f"shape {shape}, offsets {start} and {end}")
    return Entry(np.dtype(DTYPES[described["dtype"]]), tuple(shape), start)


def bytes_of(array: np.ndarray) -> memoryview:
    """Return the memory of `array`, or a copy of it where it is in another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def describe(tensors: Tensors, metadata: dict[str, Any]) -> Header:
    """Return the header of a file with these tensors."""
    return Header.lay_out({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, metadata)


def stream(tensors: Tensors, metadata: dict[str, Any]) -> Iterator[bytes]:
    """Yield a model as it is transmitted: the packed header in one chunk, then the tensors in chunks of CHUNK_BYTES."""
    header = describe(tensors, metadata)
    yield header.pack()
    yield from _data_chunks(tensors, header)


def file_chunks(tensors: Tensors, metadata: dict[str, Any]) -> Iterator[bytes]:
    """Yield the bytes of a safetensors file: its header, then the tensors in chunks of CHUNK_BYTES."""
    header = describe(tensors, metadata)
    yield header.encode()
    yield from _data_chunks(tensors, header)


def _data_chunks(tensors: Tensors, header: Header) -> Iterator[bytes]:
    parts, size = [], 0
    for name in header.entries:
        view = bytes_of(tensors[name])
        while len(view):
            taken = view[: CHUNK_BYTES - size]
            parts.append(taken)
            size += len(taken)
            view = view[len(taken) :]
            if size == CHUNK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    if parts:
        yield b"".join(parts)


class Receiver:
    """Receiver of models that `stream` has sent.

    All tensors lie in one buffer, which the next model of the same size overwrites: fresh memory for hundreds of
    megabytes costs as much time as filling it.
    """

    def __init__(self, allocate: Callable[[int], Any] | None = None) -> None:
        """Receive into memory that `allocate` returns for a number of bytes, or into a buffer of its own."""
        self._buffer = bytearray()
        self._allocate = allocate or self._reuse

    def _reuse(self, n_bytes: int) -> bytearray:
        if len(self._buffer) != n_bytes:
            self._buffer = bytearray(n_bytes)
        return self._buffer

    def receive(self, chunks: Iterable[bytes]) -> tuple[Tensors, dict[str, Any]]:
        """Return tensors and metadata. Raises TensorFormatError."""
        header, buffer = self.receive_data(chunks)
        return tensors_in(buffer, header), header.metadata

    def receive_data(self, chunks: Iterable[bytes]) -> tuple[Header, Any]:
        """Return the header of a model and the memory with its tensors. Raises TensorFormatError."""
        chunks = iter(chunks)
        header = Header.unpack(next(chunks, b""))
        buffer, filled = self._allocate(header.data_bytes), 0
        for chunk in chunks:
            if filled + len(chunk) > len(buffer):
                raise TensorFormatError(f"more than the {len(buffer)} bytes that the header tells of")
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if filled < len(buffer):
            raise TensorFormatError(f"{filled} bytes of {len(buffer)}")
        return header, buffer


def tensors_in(buffer: Any, header: Header) -> Tensors:
    """Return the tensors that lie in memory as the header of their file says."""
    return {n: np.ndarray(e.shape, e.dtype, buffer, e.start) for n, e in header.entries.items()}


def buffer_chunks(buffer: Any, header: Header) -> Iterator[bytes]:
    """Yield what lies in memory as it is transmitted: the packed header in one chunk, then chunks of CHUNK_BYTES."""
    yield header.pack()
    with memoryview(buffer) as view:
        for start in range(0, header.data_bytes, CHUNK_BYTES):
            yield bytes(view[start : min(start + CHUNK_BYTES, header.data_bytes)])


def receive(chunks: Iterable[bytes]) -> tuple[Tensors, dict[str, Any]]:
    """Return tensors and metadata of a model that `stream` has sent, in new memory. Raises TensorFormatError."""
    return Receiver().receive(chunks)


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, Any]) -> None:
    """Write a safetensors file. It is not whole before the call returns."""
    header = describe(tensors, metadata)
    with path.open("wb") as file:
        file.write(header.encode())
        file.writelines(bytes_of(tensors[name]) for name in header.entries)


class TensorFile:
    """An open safetensors file, read by offset and never mapped. Several threads may read it at a time."""

    def __init__(self, path: Path, header: Header | None = None) -> None:
        """Open the file at `path`.

        `header` is the file's own, where that is known: with hundreds of tensors, decoding takes milliseconds.

        Raises OSError, and TensorFormatError for a file that is not safetensors or is cut short.
        """
        self._file = path.open("rb")
        try:
            size = int.from_bytes(self._file.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise TensorFormatError(f"{path.name}: not a safetensors header of {size} bytes")
            self._file.seek(0)
            self._data_start = 8 + size
            self.header = header or Header.decode(self._file.read(self._data_start))
            expected, found = self._data_start + self.header.data_bytes, os.fstat(self._file.fileno()).st_size
            if found != expected:
                raise TensorFormatError(f"{path.name}: {found} bytes in place of {expected}")
        except TensorFormatError:
            self._file.close()
            raise

    @property
    def inode(self) -> int:
        """Return the number of the file itself, whatever names it has."""
        return os.fstat(self._file.fileno()).st_ino

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return items `first` up to `last` of a tensor, flat.

        They may reach into the tensors of the same type behind it.
        """
        entry = self.header.entries[name]
        values = np.empty((entry.count if last is None else last) - first, entry.dtype)
        offset = self._data_start + entry.start + first * entry.dtype.itemsize
        view, done = bytes_of(values), 0
        while done < len(view):
            read = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if not read:
                raise TensorFormatError(f"{self._file.name} ends at byte {offset + done}")
            done += read
        return values

    def load(self) -> Tensors:
        """Return all tensors by name."""
        return {name: self.read(name).reshape(entry.shape) for name, entry in self.header.entries.items()}

    def chunks(self, sizes: Iterable[int] = repeat(CHUNK_BYTES)) -> Iterator[bytes]:
        """Yield the file as `stream` does, in chunks of these sizes."""
        yield self.header.pack()
        sizes, start, end = iter(sizes), self._data_start, self._data_start + self.header.data_bytes
        while start < end:
            chunk = os.pread(self._file.fileno(), min(next(sizes), end - start), start)
            start += len(chunk)
            yield chunk

    def chunks_with_floats_as(self, dtype: str, sizes: Iterable[int] = repeat(CHUNK_BYTES)) -> Iterator[bytes]:
        """Yield the file as `stream` does, floating tensors converted on the way; no chunk spans two tensors."""
        header, sizes = self.header.with_floats_as(dtype), iter(sizes)
        yield header.pack()
        for name, entry in header.entries.items():
            first = 0
            while first < entry.count:
                last = min(first + next(sizes) // entry.dtype.itemsize, entry.count)
                yield self.read(name, first, last).astype(entry.dtype).tobytes()
                first = last
