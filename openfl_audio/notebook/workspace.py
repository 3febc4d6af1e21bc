"""Selection of the files of an experiment's package that envoys get: modules, settings, and files named on request.

A package's folder is often a checkout or a working folder, with credentials, caches and recordings in it. Therefore
the rule says what is sent, not what stays.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from openfl_audio.errors import DefinitionError

SENT_SUFFIXES = frozenset({".py", ".pyi", ".yaml", ".yml", ".json", ".toml", ".cfg", ".ini"})
# Python and Jupyter make these again.
CACHES = frozenset({"__pycache__", ".ipynb_checkpoints"})
MODULE_SUFFIXES = frozenset({".py", ".pyi"})
# A setting has kilobytes: what is larger is data, such as a table of transcripts.
MAX_SETTING_BYTES = 10 << 20
# Settings that are credentials by their names.
_SECRET = re.compile(
    r"secret|credential|passw|api[-_]?key|access[-_]?token|service[-_]?account|^kaggle\.", re.IGNORECASE
)
# Installations and logs of other programs, by the name of the folder or by what is in it.
FOREIGN_FOLDERS = frozenset({"node_modules", "site-packages", "__pypackages__", "mlruns", "wandb", "lightning_logs"})
FOREIGN_MARKS = ("pyvenv.cfg", "conda-meta", "CACHEDIR.TAG")
NAMED_LEFT_OUT = 10


def select_files(folder: Path, also: Iterable[str] = ()) -> tuple[list[Path], list[str]]:
    """Return the files to send, in order, and the names of what is left out; a folder's name ends with a slash.

    Files of SENT_SUFFIXES are sent, unless they or a folder above them are hidden, the folder is another program's, or
    they are settings that are large or credentials. So are files that match a glob pattern of `also`, relative to
    `folder`. Links are followed: a file that is linked to arrives as a file. Raises DefinitionError for a pattern that
    no file matches, and for a name that is not UTF-8.
    """
    asked_for = {path for pattern in also for path in _matches(folder, pattern)}
    sent, left_out = set(asked_for), []
    for path in _walk(folder, frozenset()):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            left_out.append(f"{name}/")
        elif path.is_file() and _is_module_or_setting(path):
            sent.add(path)
        elif path not in asked_for:
            left_out.append(name)
    for path in sent:
        _check_name(path)
    return sorted(sent), sorted(left_out)


def describe_left_out(names: list[str]) -> str:
    """Shorten a list of names to one phrase, in printable characters."""
    more = f" and {len(names) - NAMED_LEFT_OUT} more" if len(names) > NAMED_LEFT_OUT else ""
    shown = (os.fsencode(name).decode(errors="backslashreplace") for name in names[:NAMED_LEFT_OUT])
    return ", ".join(shown) + more


def _matches(folder: Path, pattern: str) -> list[Path]:
    if not pattern or PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
        raise DefinitionError(
            f"workspace_files: {pattern!r} must be a pattern relative to the package's folder {folder}"
        )
    found = [path for path in folder.glob(pattern) if path.is_file()]
    if not found:
        raise DefinitionError(
            f"workspace_files: no file in {folder} matches {pattern!r} ('NAME/**/*' matches all files of a folder)"
        )
    return found


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the files below `folder`, and the folders that are not looked into; `above` are those around it."""
    above = above | {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name in CACHES:
            continue
        if path.is_dir() and not (_is_foreign(path) or path.resolve() in above):
            yield from _walk(path, above)
        else:
            yield path


def _is_foreign(folder: Path) -> bool:
    """Tell whether a folder belongs to a tool (.git, .venv, an installation) instead of to the package."""
    name = folder.name
    if name.startswith(".") or name in FOREIGN_FOLDERS or folder.suffix in (".egg-info", ".dist-info"):
        return True
    return any((folder / mark).exists() for mark in FOREIGN_MARKS)


def _is_module_or_setting(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix not in SENT_SUFFIXES:
        return False
    return suffix in MODULE_SUFFIXES or (path.stat().st_size <= MAX_SETTING_BYTES and not _SECRET.search(path.name))


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DefinitionError(f"the name of workspace file {str(path)!r} is not UTF-8: rename it") from None
