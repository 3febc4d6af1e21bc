"""Formats of what stays on a disk while versions come and go: a later one is refused by name, and never overlooked.

A file says in `format` how it is to be read, a whole number from 1, and in `version` which openfl-audio wrote it.
Within a format another version may add keys, which are kept, or done without. What an older version must not overlook,
as it would do wrong with the rest, takes the next number. A file that names no format has the first.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openfl_audio.errors import FormatError

FIRST = 1
KEYS = ("format", "version")


def written_by() -> str:
    """Return the version of openfl-audio that writes files here."""
    return version("openfl-audio")


def stamp(number: int) -> dict[str, Any]:
    """Return the keys that tell a file's format, and what wrote it."""
    return dict(zip(KEYS, (number, written_by()), strict=True))


def check_format(path: Path, content: Mapping[str, Any], known: int) -> None:
    """Raise FormatError, naming the file and both versions, if `content` of `path` has a format after `known`."""
    found = content.get("format", FIRST)
    if type(found) is int and FIRST <= found <= known:
        return
    writer = content.get("version") or "of a version that it does not name"
    raise FormatError(
        f"{path} has format {found!r}, written by openfl-audio {writer}: this is openfl-audio {written_by()}, which "
        f"knows format {known}; run the version that wrote it, or a later one"
    )
