"""The history of an experiment, as a table for people: line by line in a terminal, live with a curve in Jupyter."""

import base64
import html
import io
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import pandas as pd

from openfl_audio.protocol.messages import Ended, Waits
from openfl_audio.training.history import (
    NOTES,
    Record,
    note_sentences,
    scores_by_round,
    show_value,
    table_columns,
    table_row,
    to_frame,
)

# A picture takes about a tenth of a second: rounds that are quicker than this share one.
SECONDS_BETWEEN_PICTURES = 0.5
# The middle of a longer table is left out in Jupyter, where every round sends it anew.
MOST_ROWS_SHOWN = 20


def without_envoys(record: Record) -> Record:
    """Return a record without each envoy's metrics.

    They are not shown, and with hundreds of envoys fill the memory.
    """
    return {key: value for key, value in record.items() if key != "envoys"}


def show_progress(
    messages: Iterable[Record | Waits | Ended], name: str, metric: str, direction: str, past_rounds: int
) -> pd.DataFrame:
    """Show messages of `DirectorClient.stream_history` as they come, and return the history as `to_frame` does.

    `metric` chooses the best model of the experiment called `name`, in the direction "max" or "min". The first
    `past_rounds` records are of rounds that are over, and come all at once.
    """
    records: list[Record] = []
    views = _views(name, metric, direction, past_rounds)
    status = ""
    try:
        for message in messages:
            if isinstance(message, Ended):
                status = message.status
                continue
            if isinstance(message, Waits):
                print(f"experiment '{name}' {f'waits: {message.waits}' if message.waits else 'resumes'}", flush=True)
                continue
            records.append(without_envoys(message))
            for view in views:
                view.show(records)
    finally:
        for view in views:
            view.end(records)
    if status == "stopped":
        print(f"experiment '{name}' was stopped; rounds completed: {len(records)}", flush=True)
    return to_frame(records)


class View(Protocol):
    """Shows the records of the rounds so far; `end` comes last, in any case."""

    def show(self, records: Sequence[Record]) -> None:
        """Show the records of the rounds so far."""

    def end(self, records: Sequence[Record]) -> None:
        """Show the records for the last time."""


class Lines:
    """Printed lines, one a round, below names of columns that are printed again when there are more of them."""

    def __init__(self) -> None:
        self._columns: list[str] = []

    def show(self, records: Sequence[Record]) -> None:
        """Print the last record."""
        row = table_row(records[-1])
        row.pop(NOTES, None)  # too long for a column
        if not row.keys() <= set(self._columns):
            self._columns = [name for name in table_columns(records) if name != NOTES]
            print("  ".join(f"{name:>10}" for name in self._columns))
        values = ((name, show_value(name, row.get(name))) for name in self._columns)
        print("  ".join(f"{value:>{max(10, len(name))}}" for name, value in values), flush=True)
        for sentence in note_sentences(records[-1]):
            print(f"{'':>10}  {sentence}", flush=True)

    def end(self, records: Sequence[Record]) -> None:
        """Do nothing: all records have been printed."""


class LiveDisplay:
    """A display in a notebook, with a curve and a table, that is replaced as rounds come."""

    def __init__(self, name: str, metric: str, direction: str, past_rounds: int) -> None:
        from IPython.display import display  # where there is a kernel there is IPython

        self._name, self._metric, self._direction, self._past_rounds = name, metric, direction, past_rounds
        self._drawn = 0.0
        self._handle = display(self._content([]), raw=True, display_id=True)

    def show(self, records: Sequence[Record]) -> None:
        """Replace the display, unless it was replaced a moment ago."""
        # Rounds of the past come all at once: one picture will do for them.
        is_past = len(records) < self._past_rounds
        if not is_past and time.monotonic() - self._drawn > SECONDS_BETWEEN_PICTURES:
            self.end(records)

    def end(self, records: Sequence[Record]) -> None:
        """Replace the display."""
        self._handle.update(self._content(records), raw=True)
        self._drawn = time.monotonic()

    def _content(self, records: Sequence[Record]) -> dict[str, str]:
        page = to_html(records, self._name, self._metric, self._direction)
        return {"text/html": page, "text/plain": _text_frame(records).to_string(index=False)}


def to_html(records: Sequence[Record], name: str, metric: str, direction: str) -> str:
    """Return the curve of `metric`, which chooses the best model ("max" or "min", says `direction`), above a table."""
    if scores_by_round(records, metric):
        encoded = base64.b64encode(draw(records, name, metric, direction)).decode()
        curve = f'<img alt="{html.escape(metric)} by round" src="data:image/png;base64,{encoded}">'
    else:
        curve = f"<p>{html.escape(name)}: no round has validated '{html.escape(metric)}' so far</p>"
    table = _text_frame(records).to_html(index=False, max_rows=MOST_ROWS_SHOWN, border=0)
    said = [f"round {record['round']}: {sentence}" for record in records for sentence in note_sentences(record)]
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in said[-MOST_ROWS_SHOWN:])
    return curve + table + (f"<ul>{items}</ul>" if said else "")


def draw(records: Sequence[Record], name: str, metric: str, direction: str) -> bytes:
    """Return a PNG of `metric` by round, of the rounds that validated, with the best one marked."""
    # Slow to load, and of no use in a terminal. No pyplot: its figures are the notebook's own affair.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scores = scores_by_round(records, metric)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(scores), list(scores.values()), marker=".")
    best = max((record["round"] for record in records if record["best"]), default=None)
    if best is not None:
        axes.plot(best, scores[best], "C3o", label=f"best: {scores[best]:.3f} in round {best}")
        axes.legend()
    axes.set(title=name, xlabel="round", ylabel=f"{metric} ({'higher' if direction == 'max' else 'lower'} is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()


def _views(name: str, metric: str, direction: str, past_rounds: int) -> list[View]:
    """Return lines in a terminal and a live display in Jupyter; both where a notebook is executed without a browser.

    Jupyter's server names the notebook to its kernels. papermill and nbclient do not, and pass printed lines on.
    """
    if not _is_kernel():
        return [Lines()]
    display = LiveDisplay(name, metric, direction, past_rounds)
    return [display] if "JPY_SESSION_NAME" in os.environ else [display, Lines()]


def _is_kernel() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _text_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return the history as people read it."""
    rows = [table_row(record) for record in records]
    columns = [name for name in table_columns(records) if name != NOTES]  # below the table
    return pd.DataFrame([[show_value(name, row.get(name)) for name in columns] for row in rows], columns=columns)
