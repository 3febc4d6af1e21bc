"""Write the update that an envoy sends to its file, each chunk while the next one arrives."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

from openfl_audio.errors import BrokenUploadError, UpdateRefusedError
from openfl_audio.protocol.tensors import Header

# A smaller chunk is written in less time than it takes to hand it to a thread.
SMALL_CHUNK_BYTES = 1 << 17


async def write_update(path: Path, header: Header, chunks: AsyncIterator[bytes], error_prefix: str) -> int:
    """Write an update over the file `path`, as a safetensors file of `header`, and return the bytes of its tensors.

    Raises UpdateRefusedError for more bytes than the header names, BrokenUploadError for fewer, and OSError, before
    anything is received, if the disk has no room for all of them.
    """
    encoded, expected, received = header.encode(), header.data_bytes, 0
    writing: asyncio.Future | None = None
    # Its lock makes closing the file wait for a write that a thread is at when the call is cancelled.
    with path.open("r+b") as file:
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
                file.write(chunk)
            else:
                writing = asyncio.get_running_loop().run_in_executor(None, file.write, chunk)
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
