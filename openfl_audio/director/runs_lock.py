"""The lock by which only one director works in a folder of experiments."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openfl_audio.files import make_folder


@contextmanager
def sole_director(runs: Path) -> Iterator[None]:
    """Keep other directors out of `runs` for as long as the block lasts. Raises OSError if one works there already.

    Each would take the other's files for leftovers of a killed one. The lock goes with the process, however that ends.
    """
    make_folder(runs)
    with (runs / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another director works in {runs}: stop it, or give this one 'runs' of its own") from None
        yield
