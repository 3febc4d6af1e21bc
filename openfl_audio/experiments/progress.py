"""Progress of a run: a bar for its rounds, one for the clients of the round, and a line for every round."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openfl_audio.notebook.live_view import Lines
from openfl_audio.protocol.plan import TRAIN

Record = dict[str, Any]
OnRound = Callable[[Record], None]


class RunProgress:
    """A context manager. `records` are those of the rounds so far."""

    def __init__(self, description: str, rounds: int) -> None:
        self.records: list[Record] = []
        self._watchers: Sequence[OnRound] = ()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Where nobody looks, the lines are enough.
        self._bars = Progress(
            *columns, console=Console(file=sys.stdout), transient=True, disable=not sys.stdout.isatty()
        )
        self._rounds = self._bars.add_task(description, total=rounds)
        self._clients = self._bars.add_task("clients of this round", total=None)
        self._lines = Lines()

    def __enter__(self) -> "RunProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def watch(self, *watchers: OnRound) -> None:
        """Let `watchers` have the record of each round."""
        self._watchers = watchers

    def show_past(self, records: Sequence[Record]) -> None:
        """Show the rounds of an earlier run."""
        for record in records:
            self.show_round(record)

    def show_client(self, client: str) -> None:
        """Show that one more client has answered in this round."""
        self._bars.advance(self._clients)

    def show_round(self, record: Record) -> None:
        """Keep the record of a round, show it, and pass it on."""
        self.records.append(record)
        self._lines.show(self.records)
        for watcher in self._watchers:
            watcher(record)
        self._bars.update(self._rounds, completed=sum(TRAIN in each["metrics"] for each in self.records))
        # As many clients as last time, most likely.
        self._bars.reset(self._clients, total=len(record["envoys"]))
