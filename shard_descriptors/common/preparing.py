"""Journal from which a killed preparation of a corpus resumes, and a bar that shows how far it is."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openfl_audio.files import Journal
from shard_descriptors.common.errors import CorpusError

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item", str, int)
JOURNAL = "journal.jsonl"  # what has been done, and with what result; gone when the folder is complete


def open_journal(folder: Path, settings: dict[str, Any]) -> Journal:
    """Open the journal of the preparation in `folder`; its first record is `settings`, or those of an earlier run.

    Raises CorpusError if `folder` holds anything else than a preparation that was begun.
    """
    path = folder / JOURNAL
    if not path.is_file() and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CorpusError(f"{folder} exists and is no begun preparation: remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(path)
    if not len(journal):
        journal.append(settings, durable=True)
    return journal


def do_the_rest(
    journal: Journal,
    key: str,
    items: Sequence[Item],
    work: Callable[[Item], dict[str, Any]],
    *,
    fault: str,
    workers: int,
    description: str,
) -> dict[Item, dict[str, Any]]:
    """Return what `work` makes of each item, in their order; what the journal has of an earlier run is not done again.

    A record is the result and, under `key`, the item. One that has something under `fault` is tried again: a damaged
    download may have been mended. `work` runs in `workers` threads; decoding and writing leave the interpreter's lock.
    """
    done = {}
    for index in range(1, len(journal)):
        record = journal[index]
        if not record.get(fault):
            done[record.pop(key)] = record
    left = [item for item in items if item not in done]
    with ThreadPoolExecutor(workers) as pool, progress_bar() as progress:
        task = progress.add_task(description, total=len(items), completed=len(items) - len(left))
        futures = {pool.submit(work, item): item for item in left}
        try:
            for future in as_completed(futures):
                item = futures[future]
                done[item] = future.result()
                journal.append({key: item} | done[item], durable=False)
                progress.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or the pool would first do all the rest
            raise
    return {item: done[item] for item in items}


def progress_bar() -> "Progress":
    """Return a bar on standard error with the items done, the time it took and the time that is left."""
    # Who reads a corpus that is prepared needs no bar.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
