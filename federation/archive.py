"""The zip archives that an experiment travels in: checked before anything is unpacked."""

import errno
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

MAX_UNPACKED_BYTES = 1 << 30
MAX_FILES = 10_000
# What zipfile raises for archives that are damaged, encrypted, or compressed in a way it does not know.
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


class ArchiveError(ValueError):
    """An archive that must not be unpacked."""


def check_archive(archive: Path) -> None:
    """Raises ArchiveError, naming the entry, for one that leads out of its folder, is a link or unpacks to too much."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            _check_entries(zipped.infolist())
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{archive.name} is no zip archive: {error}") from error


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES:
        raise ArchiveError(f"the archive has {len(entries)} files, more than {MAX_FILES}")
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
            raise ArchiveError(f"the archive's entry {entry.filename[:200]!r} leads out of the experiment's folder")
        mode = entry.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
            raise ArchiveError(f"the archive's entry {entry.filename[:200]!r} is a link or no plain file")
    size = sum(entry.file_size for entry in entries)
    if size > MAX_UNPACKED_BYTES:
        raise ArchiveError(f"the archive unpacks to {size} bytes, more than {MAX_UNPACKED_BYTES}")


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack into `folder`. Raises ArchiveError, also for an entry that is larger than it says."""
    check_archive(archive)
    try:
        with zipfile.ZipFile(archive) as zipped:
            # zipfile stops reading an entry at the size it declares, and checks its checksum.
            zipped.extractall(folder)
    except (*UNREADABLE, OSError) as error:
        raise ArchiveError(f"{archive.name} cannot be unpacked: {error}") from error


def extract_file(zipped: zipfile.ZipFile, name: str, target: Path, limit: int) -> None:
    """Copy one entry to `target`, down to the disk, never holding it in memory.

    Raises ArchiveError if it is absent or too large.
    """
    try:
        entry = zipped.getinfo(name)
    except KeyError:
        raise ArchiveError(f"'{name}' is missing") from None
    if entry.file_size > limit:
        raise ArchiveError(f"'{name}' has {entry.file_size} bytes, more than {limit}")
    try:
        with zipped.open(entry) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except UNREADABLE as error:
        raise ArchiveError(f"'{name}' cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ArchiveError(f"'{name}' lies outside of its archive") from error
