"""The records of an experiment's rounds: on disk, one line of JSON each, and read from there when somebody asks."""

import bisect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openfl_audio.files import append_at

logger = logging.getLogger(__name__)


class History:
    """A sequence of records of which only the places on disk are in memory, and the last one.

    With hundreds of envoys and thousands of rounds it is a gigabyte.
    """

    def __init__(self, path: Path, rounds: int = 0) -> None:
        """The records in `path`, at most `rounds` of them: what follows belongs to rounds that do not count."""
        self._path = path
        self._ends = [0]
        self.last: dict[str, Any] | None = None
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if len(self) == rounds or not self._take(line):
                        break
            self._read_last()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.line(range(len(self))[index]))

    def line(self, index: int) -> bytes:
        """Record `index` as the JSON that is on disk. Raises OSError."""
        start, end = self._ends[index : index + 2]
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def latest(self, max_bytes: int) -> list[dict[str, Any]]:
        """The last records, as many as have `max_bytes` together."""
        first = bisect.bisect_left(self._ends, self._ends[-1] - max_bytes)
        return [self[index] for index in range(first, len(self))]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record, whole or not at all. Raises OSError; then it may be added again."""
        line = json.dumps(record).encode() + b"\n"
        self._ends.append(append_at(self._path, self._ends[-1], line))
        self.last = record

    def _read_last(self) -> None:
        while len(self) and self.last is None:
            try:
                self.last = self[-1]
            except ValueError:
                logger.error("%s: line %d is no record and is left out", self._path, len(self))
                self._ends.pop()

    def _take(self, line: bytes) -> bool:
        # Parsing a gigabyte takes minutes. What a power cut leaves of a line ends early, or has zeros.
        if not (line.startswith(b"{") and line.endswith(b"}\n") and b"\0" not in line):
            logger.error("%s: line %d is no record; it and what follows is left out", self._path, len(self) + 1)
            return False
        self._ends.append(self._ends[-1] + len(line))
        return True
