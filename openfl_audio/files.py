"""Files that are whole, or not there, also after a power cut; and results as JSON."""

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names `folder` has."""
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
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which takes the place of `path` when the block ends without an error.

    Then `path` has either the new content or what it held before, also after a power cut.
    """
    temporary = path.with_name(f".{path.name}.partial")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which holds either that or what it held before, also after a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def append_at(path: Path, end: int, data: bytes, sync: bool = True) -> int:
    """Write `data` at byte `end` of `path`, in place of whatever follows there. Returns the new end.

    What an attempt before this one left behind, half a line on a full disk for example, goes away.
    """
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(end)
        file.seek(end)
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    return end + len(data)


LIBRARIES = ("openfl", "torch", "torchaudio", "transformers", "datasets", "numpy")


def write_result(path: Path, **values: Any) -> None:
    """Write `values` and the versions they stand on as JSON."""
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    write_json(path, {**values, "versions": versions})


def write_json(path: Path, values: Any) -> None:
    """Complete or not at all."""
    _write(path, json.dumps(values, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A line a record, complete or not at all."""
    _write(path, "".join(json.dumps(record) + "\n" for record in records))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode())
