"""Files that are whole, or not there, also after a power cut."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names `folder` has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which holds either that or what it held before, also after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


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
