"""Write the update that an envoy sends to its file, each chunk while the next one arrives."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path

import numpy as np

from openfl_audio.errors import BrokenUploadError, UpdateRefusedError
from openfl_audio.protocol.tensors import Header
from openfl_audio.protocol.values import LARGEST_VALUE, magnitude

# A smaller chunk is written in less time than it takes to hand it to a thread.
SMALL_CHUNK_BYTES = 1 << 17


class PassingValues:
    """A look at the floating values of an update as their bytes pass, while these are in the processor's cache.

    Attributes:
        are_doubtful: whether one of them may be NaN, infinite or too large. The file tells which, and whether it is.
    """

    def __init__(self, header: Header) -> None:
        self.are_doubtful = False
        # Tensors of one type follow each other: each span of them ends at a byte.
        entries = groupby(header.entries.values(), key=lambda entry: entry.dtype)
        self._spans = [(dtype, sum(entry.n_bytes for entry in of_type)) for dtype, of_type in entries]
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        """Look at the next bytes. A value that they cut in two is looked at with those that follow."""
        data = memoryview(self._rest + chunk if self._rest else chunk)
        while data and self._spans:
            dtype, left = self._spans.pop(0)
            part = data[: min(left, len(data)) // dtype.itemsize * dtype.itemsize]
            if dtype.kind == "f" and not magnitude(np.frombuffer(part, dtype)) <= LARGEST_VALUE:  # nor where it is NaN
                self.are_doubtful = True
            data = data[len(part) :]
            if len(part) < left:
                self._spans.insert(0, (dtype, left - len(part)))
                break
        self._rest = bytes(data)


async def write_update(
    path: Path, header: Header, chunks: AsyncIterator[bytes], error_prefix: str, values: PassingValues
) -> int:
    """Write an update over the file `path`, as a safetensors file of `header`, and return the bytes of its tensors.

    `values` looks at them on the way.

    Raises UpdateRefusedError for more bytes than the header names, BrokenUploadError for fewer, and OSError, before
    anything is received, if the disk has no room for all of them.
    """
    encoded, expected, received = header.encode(), header.data_bytes, 0
    writing: asyncio.Future | None = None
    # Its lock makes closing the file wait for a write that a thread is at when the call is cancelled.
    with path.open("r+b") as file:

        def write(chunk: bytes) -> None:
            file.write(chunk)
            values.add(chunk)

        reserve(file.fileno(), len(encoded) + expected)
        # Without its length at the front it is no safetensors file, and so no update, until it is whole.
        file.write(bytes(8) + encoded[8:])
        async for chunk in chunks:
            received += len(chunk)
            if received > expected:
                raise UpdateRefusedError(f"{error_prefix}: larger than the {expected} bytes of its tensors")
            if writing:
                await writing
                writing = None
            if len(chunk) < SMALL_CHUNK_BYTES:
                write(chunk)
            else:
                writing = asyncio.get_running_loop().run_in_executor(None, write, chunk)
        if writing:
            await writing
        if received < expected:
            # A connection that broke looks like this too: the envoy will send it again.
            raise BrokenUploadError(f"{error_prefix}: ends after {received} of {expected} bytes")
        file.truncate()
        file.seek(0)
        file.write(encoded[:8])
    return received


def reserve(descriptor: int, size: int) -> None:
    """Take `size` bytes of the disk for a file. Raises OSError, and takes none, if there is no room."""
    before = os.fstat(descriptor).st_size
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.ftruncate(descriptor, before)
        # A file system that cannot do it says at the first byte that does not fit.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
            raise
