"""The zip archives in which an experiment is transmitted: checked before anything is unpacked."""

import errno
import io
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from openfl_audio.errors import ArchiveError

MAX_UNPACKED_BYTES = 1 << 30
MAX_FILES = 10_000
# The list of files at the end of an archive has 46 bytes for each, and its name.
MAX_LIST_BYTES = MAX_FILES * 1024
LIST_ENTRY = b"PK\x01\x02"
# What zipfile raises for archives that are damaged, encrypted, or of a version or compression that it does not know.
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError
)  # fmt: skip


class _BoundedList(io.FileIO):
    """File whose list of zip entries is bounded before zipfile reads it.

    zipfile reads the list at once, and makes an object of each entry.
    """

    is_open = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.is_open:
            return super().read(size)
        if size is not None and size > MAX_LIST_BYTES:
            raise ArchiveError(f"the archive's list of files has {size} bytes, more than {MAX_LIST_BYTES}")
        data = super().read(size)
        count = data.count(LIST_ENTRY)
        if count > MAX_FILES:
            raise ArchiveError(f"the archive has {count} files, more than {MAX_FILES}")
        return data


@contextmanager
def open_archive(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive to read. Raises ArchiveError if it is none, or has more than MAX_FILES files."""
    with _BoundedList(archive) as file:
        try:
            zipped = zipfile.ZipFile(file)
        except UNREADABLE as error:
            raise ArchiveError(f"{archive.name} is no zip archive: {error}") from error
        file.is_open = True
        with zipped:
            yield zipped


def check_archive(archive: Path) -> None:
    """Raise ArchiveError, naming the entry, unless the archive can be unpacked safely.

    It cannot if an entry leads out of its folder, is a link, or unpacks to too much.
    """
    with open_archive(archive) as zipped:
        _check_entries(zipped.infolist())


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        # A colon alone means nothing: logs are called by the time. Behind one letter it is that of a drive.
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(entry.filename).drive:
            raise ArchiveError(f"the archive's entry {entry.filename[:200]!r} leads out of the experiment's folder")
        mode = entry.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
            raise ArchiveError(f"the archive's entry {entry.filename[:200]!r} is a link or no plain file")
    size = sum(entry.file_size for entry in entries)
    if size > MAX_UNPACKED_BYTES:
        raise ArchiveError(f"the archive unpacks to {size} bytes, more than {MAX_UNPACKED_BYTES}")


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack an archive into `folder`. Raises ArchiveError, also for an entry that is larger than it says."""
    check_archive(archive)
    try:
        with open_archive(archive) as zipped:
            # zipfile stops reading an entry at the size it declares, and checks its checksum.
            zipped.extractall(folder)
    except (*UNREADABLE, OSError) as error:
        raise ArchiveError(f"{archive.name} cannot be unpacked: {error}") from error


class _Made(io.RawIOBase):
    """Sink for what zipfile writes, from which it is taken chunk by chunk."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def stream_archive(entries: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """Yield an uncompressed zip archive in chunks, as they are made from those of its entries.

    Nothing of the archive is kept.
    """
    made = _Made()
    with zipfile.ZipFile(made, "w") as zipped:
        for name, chunks in entries:
            with zipped.open(name, "w", force_zip64=True) as entry:
                for chunk in chunks:
                    entry.write(chunk)
                    yield made.take()
    yield made.take()


def extract_file(zipped: zipfile.ZipFile, name: str, target: Path, limit: int) -> None:
    """Copy one entry to `target`, down to the disk, without holding all of it in memory.

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
