"""Record of what a director or an envoy did: lines of JSON that are only added, each with the hash of the one before.

    {"number": 7, "time": "2026-05-31T17:00:00.000+00:00", "before": "SHA-256 of line 6", "event": "submitted", ...}

The hash is that of the line as it is in the file, without its line break; the first line has zeros there. Director and
envoys keep each other's newest hashes (see `openfl_audio.protocol.heads`), so neither can change what is behind them.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from openfl_audio.errors import RecordError
from openfl_audio.files import append_at, make_folder, sync_folder
from openfl_audio.formats import check_format, stamp

logger = logging.getLogger(__name__)

RECORD = "record.jsonl"
# Version of the lines. A record of a later one is refused, as it may mean something else.
FORMAT = 1
NO_HASH = "0" * 64
# Read from the end at first, to find the last line.
TAIL_BYTES = 64 << 10


class Head(NamedTuple):
    """Number and hash (SHA-256, hexadecimal) of the last line of a record; number 0 of an empty one."""

    number: int
    sha256: str


EMPTY = Head(0, NO_HASH)


class Record:
    """The record in one file, to which several processes may add.

    Entries that a full disk has no room for wait in memory, in their order, and are written with the next ones.
    """

    def __init__(self, path: Path, owner: str) -> None:
        """Open the record of `owner`, such as "envoy 'site-a'", in a file that may not exist yet.

        Raises RecordError for a record of somebody else, FormatError for one of a later version, and OSError.
        """
        self.path, self.owner = path, owner
        self._lock = threading.RLock()
        self._waiting: list[tuple[str, str, dict[str, Any]]] = []
        self._end, self._head, self._durable = 0, EMPTY, EMPTY
        if path.exists():
            _check_first(path, owner)
            self.sync()

    @property
    def head(self) -> Head:
        """Return the newest entry that is there also after a power cut."""
        return self._durable

    def append(self, event: str, **fields: Any) -> None:
        """Add an entry that is there also after a power cut. Raises OSError; then there may be no entry."""
        self.write(event, **fields)
        self.sync()

    def write(self, event: str, **fields: Any) -> None:
        """Add an entry, which `sync` makes durable. Raises OSError; then there is no entry."""
        with self._lock:
            self._waiting.append((_now(), event, fields))
            try:
                self._write_waiting()
            except OSError:
                self._waiting.pop()
                raise

    def note(self, event: str, **fields: Any) -> None:
        """Add an entry without waiting for the disk: `sync` brings it there for certain."""
        with self._lock:
            self._waiting.append((_now(), event, fields))
            try:
                self._write_waiting()
            except OSError as error:
                logger.warning("%s: %d entries wait: %s", self.path, len(self._waiting), error)

    def sync(self) -> Head:
        """Bring all entries to the disk, so that they are there after a power cut, and return the newest.

        Raises OSError; entries that could not be written wait for the next attempt.
        """
        with self._lock:
            self._write_waiting()
            head = self._head
        if head != self._durable:
            # Outside of the lock: meanwhile others add entries.
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self._durable = max(head, self._durable)
        return self._durable

    def _write_waiting(self) -> None:
        with self._locked_file() as file:
            end, head, cut = self._find_end(file)
            entries = list(self._waiting)
            if cut:
                entries.insert(0, (_now(), "repaired", {"cut_bytes": cut}))
            if head.number < self._head.number:
                logger.error("%s ends at entry %d, and had %d", self.path, head.number, self._head.number)
                entries.insert(0, (_now(), "shortened", {"entries": self._head.number - head.number}))
            if entries and not head.number:
                about = {"owner": self.owner, **stamp(FORMAT)}
                entries.insert(0, (_now(), "begun", about))
            lines = b""
            for time, event, fields in entries:
                line = _line(head, time, event, fields)
                lines, head = lines + line + b"\n", Head(head.number + 1, sha256_of(line))
            if lines:
                try:
                    end = append_at(self.path, end, lines, durable=False)
                except OSError:
                    os.ftruncate(file, end)  # half a line of a full disk
                    raise
        self._waiting.clear()
        self._end, self._head = end, head

    @contextmanager
    def _locked_file(self) -> Iterator[int]:
        is_new = not self.path.exists()
        if is_new:
            make_folder(self.path.parent)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_new:
                sync_folder(self.path.parent)
            yield file
        finally:
            os.close(file)

    def _find_end(self, file: int) -> tuple[int, Head, int]:
        """Return where the last entry ends, its head, and how many bytes of no entry follow."""
        size = os.fstat(file).st_size
        if size == self._end:
            return self._end, self._head, 0
        n_bytes = TAIL_BYTES
        while True:
            start = max(0, size - n_bytes)
            block = os.pread(file, size - start, start)
            # The first line of the block is whole only where the file begins.
            lines = block.splitlines(keepends=True)[1 if start else 0 :]
            end = size
            for line in reversed(lines):
                if (number := _number_of(line)) is not None:
                    return end, Head(number, sha256_of(line[:-1])), size - end
                end -= len(line)
            if not start:
                return 0, EMPTY, size
            n_bytes *= 2


def read_record(path: Path) -> Iterator[bytes]:
    """Yield the lines of a record, without their line breaks.

    Raises RecordError for a file that cannot be read, and FormatError for the record of a later version.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if not number:
                    check_format(path, entry_of(line) or {}, FORMAT)
                yield line.removesuffix(b"\n")
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error


def entry_of(line: bytes) -> dict[str, Any] | None:
    """Return the entry in a line, or None if it is none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    texts = ("time", "before", "event")
    is_entry = isinstance(entry, dict) and type(entry.get("number")) is int
    return entry if is_entry and all(isinstance(entry.get(key), str) for key in texts) else None


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_names(names: Iterable[str]) -> str:
    """Return the SHA-256 of names in their alphabetical order, one a line, in hexadecimal."""
    return sha256_of("".join(f"{name}\n" for name in sorted(names)).encode())


def _line(before: Head, time: str, event: str, fields: dict[str, Any]) -> bytes:
    entry = {"number": before.number + 1, "time": time, "before": before.sha256, "event": event}
    return json.dumps(entry | {key: value for key, value in fields.items() if key not in entry}).encode()


def _number_of(line: bytes) -> int | None:
    """Return the number of the entry in a whole line; None if it is none."""
    entry = entry_of(line) if line.endswith(b"\n") else None
    return entry["number"] if entry else None


def _check_first(path: Path, owner: str) -> None:
    with path.open("rb") as file:
        first = entry_of(file.readline()) or {}
    check_format(path, first, FORMAT)
    if (found := first.get("owner", owner)) != owner:
        raise RecordError(f"{path} is the record of {found}, not of {owner}: each has a file of its own")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
