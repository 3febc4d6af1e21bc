"""Files that are whole or not there, folders that belong to settings, journals, and results as JSON."""

import bisect
import itertools
import json
import logging
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openfl_audio.errors import FolderInUseError
from openfl_audio.formats import KEYS, check_format, stamp

logger = logging.getLogger(__name__)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are not there; they are there also after a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


@contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[Path]:
    """Yield the name of a file to write, which takes the place of `path` when the block ends without an error.

    Whenever the process ends, `path` has either the new content or what it held before. With `durable` that is so also
    after a power cut; it takes as long as the disk needs. After an error nothing of the new file is left.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_whole(path: Path, data: bytes, *, durable: bool) -> None:
    """Write `data` to `path`, which holds either that or what it held before; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


# Format of the file that says which settings a folder belongs to.
CLAIM_FORMAT = 1


def claim(path: Path, settings: Mapping[str, Any], what: str, advice: str) -> None:
    """Note in the file `path` which settings its folder belongs to, or check that it belongs to these.

    Raises FolderInUseError, naming the first difference, if the folder has a `what` with other settings; `advice` says
    what to do then. Raises FormatError for a folder of a later version. Settings are compared as JSON, in their order,
    and keys of nested settings are joined by dots.
    """
    if not path.exists():
        write_claim(path, settings)
        return
    before, now = _flat(read_claim(path)), _flat(json.loads(json.dumps(settings)))
    for key in now | before:
        if before.get(key) != now.get(key):
            raise FolderInUseError(
                f"{path.parent} has {what} with {key} {_shown(before.get(key))}, now it is {_shown(now.get(key))}: "
                f"{advice}"
            )


def write_claim(path: Path, settings: Mapping[str, Any]) -> None:
    """Note in the file `path` which settings its folder belongs to, in place of what it says."""
    write_json(path, stamp(CLAIM_FORMAT) | dict(settings))


def read_claim(path: Path) -> dict[str, Any]:
    """Return the settings that the folder of a claim belongs to. Raises FormatError if it is a later version's."""
    content = json.loads(path.read_text(encoding="utf-8"))
    check_format(path, content, CLAIM_FORMAT)
    return {key: value for key, value in content.items() if key not in KEYS}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return f"{value!r:.200}"


class Journal:
    """Records of what has been done, one line of JSON each, from which a killed process resumes.

    Only the places of the records are in memory, and the last record: thousands of records with results of hundreds of
    envoys are a gigabyte.
    """

    def __init__(self, path: Path, most: int | None = None) -> None:
        """Open the journal in the file `path`, which may not exist yet.

        What is no record, such as half a line, ends the journal, and so do `most` records: the next one replaces
        whatever follows there.
        """
        self._path = path
        self._ends = [0]
        self.last: dict[str, Any] | None = None
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if len(self) == most or not self._take(line):
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
        """Return record `index` as the JSON that is on disk. Raises OSError."""
        start, end = self._ends[index : index + 2]
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def lines(self, first: int, max_bytes: int) -> list[bytes]:
        """Return the records from `first` on as `line` does, as many as have `max_bytes` together, and one at least.

        Raises OSError.
        """
        ends = self._ends[first : max(first + 2, bisect.bisect_right(self._ends, self._ends[first] + max_bytes))]
        with self._path.open("rb") as file:
            file.seek(ends[0])
            content = file.read(ends[-1] - ends[0])
        return [content[start - ends[0] : end - ends[0]] for start, end in itertools.pairwise(ends)]

    def latest(self, max_bytes: int) -> list[dict[str, Any]]:
        """Return the last records, as many as have `max_bytes` together."""
        first = bisect.bisect_left(self._ends, self._ends[-1] - max_bytes)
        return [self[index] for index in range(first, len(self))]

    def append(self, record: dict[str, Any], *, durable: bool) -> None:
        """Add a record, whole or not at all, with `durable` also after a power cut.

        Raises OSError; then the record may be added again.
        """
        line = json.dumps(record).encode() + b"\n"
        self._ends.append(append_at(self._path, self._ends[-1], line, durable=durable))
        self.last = record

    def cut(self) -> None:
        """Remove from the file what follows the records that count."""
        append_at(self._path, self._ends[-1], b"", durable=False)

    def make_durable(self) -> None:
        """Bring all records to the disk, so that they are there after a power cut."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())

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


def append_at(path: Path, end: int, data: bytes, *, durable: bool) -> int:
    """Write `data` at byte `end` of `path`, in place of whatever follows there. Returns the new end.

    What an attempt before this one left behind, half a line on a full disk for example, goes away.
    """
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(end)
        file.seek(end)
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    return end + len(data)


LIBRARIES = ("openfl", "torch", "torchaudio", "transformers", "datasets", "numpy")


def write_result(path: Path, **values: Any) -> None:
    """Write `values` and the versions they stand on as JSON."""
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    write_json(path, {**values, "versions": versions})


def write_json(path: Path, values: Any) -> None:
    """Write `values` to `path`, whole or not at all, also after a power cut."""
    _write(path, json.dumps(values, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a line a record to `path`, whole or not at all, also after a power cut."""
    _write(path, "".join(json.dumps(record) + "\n" for record in records))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file with one on each line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode(), durable=True)
