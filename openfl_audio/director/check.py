"""Content of a director's disk, read without disturbing a director that works there."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openfl_audio.director.run_folder import owner_of, read_state
from openfl_audio.errors import RunFolderError


@dataclass(frozen=True)
class Stored:
    """An experiment on the disk.

    Attributes:
        status: its state, or "unreadable".
        fault: why it is unreadable.
        ended: when it ended, or else was submitted, in seconds of the clock; 0 if that is not known.
        n_bytes: what its files take, each file counted once however many names it has.
    """

    name: str
    owner: str
    status: str
    ended: float
    n_bytes: int
    fault: str = ""

    @property
    def has_ended(self) -> bool:
        """Tell whether the experiment has ended."""
        return self.status in ("finished", "failed", "stopped")


def stored_experiments(runs: Path) -> Iterator[Stored]:
    """Yield the experiments below `runs`, by name."""
    for folder in sorted(path for path in runs.iterdir() if path.is_dir() and not path.name.startswith(".")):
        fault = ""
        try:
            state = read_state(folder)
            status, ended = state.status.value, state.ended_at or state.submitted
        except RunFolderError as error:
            status, ended, fault = "unreadable", 0.0, str(error)
        yield Stored(folder.name, owner_of(folder), status, ended, bytes_below(folder), fault)


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a folder; a file with several names, as models have, counts once."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except FileNotFoundError:  # a director works there
            continue
        sizes[found.st_ino] = found.st_size if path.is_file() else 0
    return sum(sizes.values())


def free_bytes(runs: Path) -> int:
    """Return the free bytes on the disk of `runs`."""
    return shutil.disk_usage(runs).free
