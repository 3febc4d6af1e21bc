"""Selection of the files of an experiment's package that envoys get: modules, settings, and files named on request.

A package's folder is often a checkout or a working folder, with credentials, caches and recordings in it. Therefore
the rule says what is sent, not what stays.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from types import ModuleType

from openfl_audio.errors import DefinitionError

logger = logging.getLogger(__name__)

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


def files_to_send(packages: Sequence[ModuleType], also: Iterable[str] = ()) -> dict[str, Path]:
    """Return the files of packages by their names in the archive. `also` are patterns for the first of them.

    Packages may lie in one folder.
    """
    files: dict[str, Path] = {}
    for number, package in enumerate(packages):
        files |= {name: path for path, name in _package_files(package, also if number == 0 else ())}
    return files


def _package_files(package: ModuleType, also: Iterable[str] = ()) -> list[tuple[Path, str]]:
    """Return files of an imported package to send, and the `__init__.py` of packages around it, with archive names.

    Of a module that is a file beside a notebook, that file is sent. Logs what of the package's folder is left out.
    `also` are patterns for `select_files`.
    """
    if not package.__file__:
        raise DefinitionError(f"workspace '{package.__name__}' has no file: give an imported module, or a package")
    if Path(package.__file__).name != "__init__.py":
        return [_module_file(package, Path(package.__file__), also)]
    folder = Path(package.__file__).parent
    parents = list(folder.parents)[: package.__name__.count(".")]
    root = folder.parents[len(parents)]
    sent, left_out = select_files(folder, also)
    size = sum(path.stat().st_size for path in sent)
    logger.info("package '%s' is sent to every envoy: %d files, %.1f kB", package.__name__, len(sent), size / 1e3)
    if left_out:
        logger.info(
            "left out of package '%s' (name in workspace_files what the tasks need): %s",
            package.__name__,
            describe_left_out(left_out),
        )
    around = [parent / "__init__.py" for parent in parents]
    return [(path, path.relative_to(root).as_posix()) for path in (*filter(Path.exists, around), *sent)]


def _module_file(module: ModuleType, path: Path, also: Iterable[str]) -> tuple[Path, str]:
    """Return the file of a module that is in no package, with its archive name."""
    if "." in module.__name__:
        package = module.__name__.rpartition(".")[0]
        raise DefinitionError(
            f"workspace '{module.__name__}' is a module of a package: give the imported package '{package}'"
        )
    if path.suffix != ".py":
        raise DefinitionError(f"workspace '{module.__name__}' is {path}: only a .py file can be sent")
    if list(also):
        raise DefinitionError(
            f"workspace_files are files of a package's folder, and '{module.__name__}' is a module: give a package"
        )
    logger.info("module '%s' is sent to every envoy: %.1f kB", module.__name__, path.stat().st_size / 1e3)
    return path, path.name
