"""The link between an envoy and its worker: a Unix socket for messages, and shared memory for tensors.

A worker runs code of others, so it dials nobody and is told no key: it asks its envoy over the socket that is its
standard input. Tensors are in memory that both have mapped; its file descriptor is sent once (SCM_RIGHTS, unix(7)).
"""

import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from openfl_audio.protocol.messages import TaskResult

# Lengths of the JSON and of the bytes behind it, and how many file descriptors come along.
_FRAME = struct.Struct("!IIB")
MAX_FILES = 3
MAX_JSON_BYTES, MAX_BLOB_BYTES = 16 << 20, 16 << 20


class Request(BaseModel):
    """A worker's request: its tasks, the round's model, memory for an update, to send that, or to report progress."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    call: Literal["tasks", "model", "memory", "update", "progress"]
    n_bytes: int = Field(default=0, ge=0)
    round: int = Field(default=0, ge=0)
    results: dict[str, TaskResult] = Field(default={}, max_length=100)
    progress: dict[str, Any] = {}


class Link:
    """One end of a socket. One thread uses it at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Return the file descriptor, for `select`."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any], blob: bytes = b"", files: Sequence[int] = ()) -> None:
        """Send a message, with bytes and file descriptors. Raises OSError."""
        text = json.dumps(message).encode()
        frame = _FRAME.pack(len(text), len(blob), len(files))
        if not files:
            self._socket.sendall(frame + text + blob)
            return
        socket.send_fds(self._socket, [frame], files)
        self._socket.sendall(text + blob)

    def receive(self) -> tuple[dict[str, Any], bytes, list[int]]:
        """Return a message, its bytes, and its file descriptors.

        Raises EOFError when the other end is closed, ValueError for what is no message, and OSError.
        """
        frame, files, _, _ = socket.recv_fds(self._socket, _FRAME.size, MAX_FILES)
        if not frame:
            raise EOFError("the other end of the link is closed")
        frame += self._exactly(_FRAME.size - len(frame))
        text_bytes, blob_bytes, n_files = _FRAME.unpack(frame)
        if text_bytes > MAX_JSON_BYTES or blob_bytes > MAX_BLOB_BYTES:
            raise ValueError(f"a message of {text_bytes} and {blob_bytes} bytes")
        message, blob = json.loads(self._exactly(text_bytes)), self._exactly(blob_bytes)
        if not isinstance(message, dict):
            raise ValueError("a message is no object")
        if len(files) != n_files:
            raise ValueError(f"a message with {len(files)} of {n_files} files")
        return message, blob, files

    def _exactly(self, n_bytes: int) -> bytes:
        parts = []
        while n_bytes:
            part = self._socket.recv(min(n_bytes, 1 << 20))
            if not part:
                raise EOFError("the other end of the link is closed")
            parts.append(part)
            n_bytes -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the link; who waits for a message hears of that."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def make_pair() -> tuple[Link, socket.socket]:
    """Return both ends of a link, the second one for another process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Link(ours), theirs


class SharedMemory:
    """Memory that an envoy has in common with its worker, reused while its size is the same.

    Attributes:
        buffer: the memory.
        file: its file descriptor, None where there is no memory.
        is_new: whether the worker has not been told of it.
    """

    def __init__(self) -> None:
        self.buffer: mmap.mmap | bytearray = bytearray()
        self.file: int | None = None
        self.is_new = False

    def allocate(self, n_bytes: int) -> mmap.mmap | bytearray:
        """Return memory of this size."""
        if len(self.buffer) != n_bytes:
            self.close()
            if n_bytes:
                self.file = _make_file(n_bytes)
                self.buffer, self.is_new = mmap.mmap(self.file, n_bytes), True
        return self.buffer

    def close(self) -> None:
        """Forget the memory; it is freed when nobody has it mapped."""
        if self.file is not None:
            os.close(self.file)
        self.buffer, self.file, self.is_new = bytearray(), None, False


def _make_file(n_bytes: int) -> int:
    """Return the descriptor of a file in memory, which the other side cannot shrink: reading it would be a fault."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("openfl-audio", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, n_bytes)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return file
    with tempfile.TemporaryFile() as unnamed:
        os.ftruncate(unnamed.fileno(), n_bytes)
        return os.dup(unnamed.fileno())
