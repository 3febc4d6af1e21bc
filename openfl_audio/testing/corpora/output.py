"""The folder that a demo corpus is written to: it appears when it is complete, and not before."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from openfl_audio.errors import DemoCorpusError

Item = TypeVar("Item")


def make_folder(out: Path, parameters: Mapping[str, object], contents: str, write: Callable[[Path], None]) -> bool:
    """Have `write` fill a folder beside `out`, add the completion marker `corpus.json` and rename it to `out`.

    Returns True when the corpus was made, and False when `out` already held a complete corpus of the same `parameters`.
    Raises `DemoCorpusError` when `out` holds anything else; `contents` says in words what it should have been.
    """
    if is_complete(out, parameters):
        return False
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise DemoCorpusError(
            f"{out} exists and is not a demo corpus of {contents}: remove it or choose another folder."
        )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        write(partial)
        (partial / "corpus.json").write_text(json.dumps(parameters, indent=2) + "\n")
        partial.replace(out)
    except OSError as error:
        raise DemoCorpusError(f"The corpus cannot be written to {out}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def is_complete(folder: Path, parameters: Mapping[str, object]) -> bool:
    """Tell whether `folder` is a finished corpus that was made with these parameters."""
    try:
        return json.loads((folder / "corpus.json").read_text()) == parameters
    except (OSError, ValueError):
        return False


def check_count(name: str, count: int, lowest: int, highest: int | None = None) -> None:
    """Raises `DemoCorpusError` for a count outside its range."""
    if count < lowest or (highest is not None and count > highest):
        allowed = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise DemoCorpusError(f"The number of {name} must be {allowed}, not {count}.")


def check_seed(seed: int) -> None:
    """Raises `DemoCorpusError` for a seed that numpy would refuse."""
    if seed < 0:
        raise DemoCorpusError(f"The seed must not be negative, and it is {seed}.")


def with_progress(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """The same items, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return iter(track(items, description, total=total, console=Console(stderr=True)))
