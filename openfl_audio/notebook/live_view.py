"""The history of an experiment, as a table for people: line by line in a terminal, live with a curve in Jupyter."""

import base64
import html
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from openfl_audio.protocol.messages import Ended, EnvoyProgress, LiveRound, Waits, say_waits
from openfl_audio.protocol.plan import VALIDATE
from openfl_audio.training.history import (
    Record,
    name_of_scores,
    note_sentences,
    privacy_sentence,
    scores_by_round,
    show_bytes,
    show_seconds,
    shown_columns,
    shown_row,
    to_frame,
)

if TYPE_CHECKING:  # slow to import, and the page shows rounds without it
    import pandas as pd

# A picture takes about a tenth of a second: rounds that are quicker than this share one.
SECONDS_BETWEEN_PICTURES = 0.5
# The middle of a longer table is left out in Jupyter, where every round sends it anew.
MOST_ROWS_SHOWN = 20
# Envoys of the open round that are named.
MOST_ENVOYS_SHOWN = 5


def without_envoys(record: Record) -> Record:
    """Return a record with the number of its updates that count in place of each envoy's metrics.

    They are not shown, and with hundreds of envoys fill the memory.
    """
    kept = {key: value for key, value in record.items() if key not in ("envoys", "timings")}
    return kept | {"counted": len(record["envoys"])}


def show_progress(
    messages: Iterable[Record | LiveRound | Waits | Ended], name: str, metric: str, direction: str, past_rounds: int
) -> "pd.DataFrame":
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
            if isinstance(message, LiveRound):
                for view in views:
                    view.move(records, message)
                continue
            if isinstance(message, Waits):
                for view in views:
                    view.move(records, None)
                print(f"experiment '{name}' {say_waits(message.waits)}", flush=True)
                continue
            records.append(without_envoys(message) if "envoys" in message else message)
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

    def move(self, records: Sequence[Record], now: LiveRound | None) -> None:
        """Show what happens in the open round, in place of what was shown of it before."""

    def end(self, records: Sequence[Record]) -> None:
        """Show the records for the last time."""


class Lines:
    """Printed lines, one a round, below names of columns that are printed again when there are more of them.

    In a terminal a line that moves follows them.
    """

    def __init__(self, metric: str | None = None) -> None:
        """Print what an experiment is judged by: `metric`, which chooses the best model; without one all metrics."""
        self._metric = metric
        self._columns: list[str] = []
        self._moving = False

    def show(self, records: Sequence[Record]) -> None:
        """Print the last record."""
        self.move(records, None)
        columns = shown_columns(records, self._metric)
        if columns != self._columns:
            self._columns = columns
            if said := privacy_sentence(records[-1]):
                print(said)
            print("  ".join(f"{name:>10}" for name in columns))
        values = zip(columns, shown_row(records[-1], columns), strict=True)
        print("  ".join(f"{value:>{max(10, len(name))}}" for name, value in values), flush=True)
        for sentence in note_sentences(records[-1]):
            print(f"{'':>10}  {sentence}", flush=True)

    def move(self, records: Sequence[Record], now: LiveRound | None) -> None:
        """Replace the line that moves. In a file or a pipe there is none."""
        if not sys.stdout.isatty() or not (now or self._moving):
            return
        sentence = live_sentence(now, shutil.get_terminal_size().columns - 1) if now else ""
        print(f"\r\x1b[K{sentence}", end="", flush=True)
        self._moving = bool(sentence)

    def end(self, records: Sequence[Record]) -> None:
        """Remove the line that moves: all records have been printed."""
        self.move(records, None)


class LiveDisplay:
    """A display in a notebook, with a curve and a table, that is replaced as rounds come."""

    def __init__(self, name: str, metric: str, direction: str, past_rounds: int) -> None:
        from IPython.display import display  # where there is a kernel there is IPython

        self._name, self._metric, self._direction, self._past_rounds = name, metric, direction, past_rounds
        self._drawn = 0.0
        self._page, self._shown = "", -1
        self._now: LiveRound | None = None
        self._handle = display(self._content([]), raw=True, display_id=True)

    def show(self, records: Sequence[Record]) -> None:
        """Replace the display, unless it was replaced a moment ago."""
        # Rounds of the past come all at once: one picture will do for them.
        is_past = len(records) < self._past_rounds
        if not is_past and time.monotonic() - self._drawn > SECONDS_BETWEEN_PICTURES:
            self._replace(records)

    def move(self, records: Sequence[Record], now: LiveRound | None) -> None:
        """Replace what is shown of the open round, below the table."""
        self._now = now
        if len(records) >= self._past_rounds:
            self._replace(records)

    def end(self, records: Sequence[Record]) -> None:
        """Replace the display, without an open round."""
        self._now = None
        self._replace(records)

    def _replace(self, records: Sequence[Record]) -> None:
        self._handle.update(self._content(records), raw=True)
        self._drawn = time.monotonic()

    def _content(self, records: Sequence[Record]) -> dict[str, str]:
        if len(records) != self._shown:  # drawing takes a tenth of a second, and the line moves every second
            self._page, self._shown = to_html(records, self._name, self._metric, self._direction), len(records)
        text = _text_frame(records, self._metric).to_string(index=False)
        if self._now is None:
            return {"text/html": self._page, "text/plain": text}
        return {
            "text/html": self._page + live_html(self._now),
            "text/plain": f"{text}\n{live_sentence(self._now)}",
        }


def to_html(records: Sequence[Record], name: str, metric: str, direction: str) -> str:
    """Return the curve of `metric`, which chooses the best model ("max" or "min", says `direction`), above a table."""
    if not records:
        return f"<p>{html.escape(name)}: no round is over so far</p>"
    if scores_by_round(records, metric):
        encoded = base64.b64encode(draw(records, name, metric, direction)).decode()
        curve = f'<img alt="{html.escape(metric)} by round" src="data:image/png;base64,{encoded}">'
    else:
        curve = f"<p>{html.escape(name)}: no round has validated '{html.escape(metric)}' so far</p>"
    table = _text_frame(records, metric).to_html(index=False, max_rows=MOST_ROWS_SHOWN, border=0)
    said = [f"round {record['round']}: {sentence}" for record in records for sentence in note_sentences(record)]
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in said[-MOST_ROWS_SHOWN:])
    if about := privacy_sentence(records[-1]):
        table += f"<p>{html.escape(about)}</p>"
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
    better = "higher" if direction == "max" else "lower"
    axes.set(title=name, xlabel="round", ylabel=f"{name_of_scores(records, metric)} ({better} is better)")
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
        return [Lines(metric)]
    display = LiveDisplay(name, metric, direction, past_rounds)
    return [display] if "JPY_SESSION_NAME" in os.environ else [display, Lines(metric)]


def _is_kernel() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _text_frame(records: Sequence[Record], metric: str) -> "pd.DataFrame":
    """Return the history as people read it."""
    import pandas as pd

    columns = shown_columns(records, metric)
    return pd.DataFrame([shown_row(record, columns) for record in records], columns=columns)


# Columns of the open round, and their styles: what moves each second must not change their widths.
NOW_COLUMNS = {
    "envoy": "text-align: left",
    "now": "text-align: left; width: 26em",
    "clips/s": "text-align: right; width: 4em",
    "left": "text-align: right; width: 6em",
    "memory": "text-align: right; width: 5em",
}


def live_html(now: LiveRound) -> str:
    """Return what happens in the open round: how long it takes, above a table of what each envoy does."""
    rows = "".join(_html_row("td", row) for row in now_rows(now))
    table = f"<table><thead>{_html_row('th', NOW_COLUMNS)}</thead><tbody>{rows}</tbody></table>"
    more = f"<p>and {now.others} more</p>" if now.others else ""
    return f"<p>{html.escape(live_title(now))}</p>{table}{more}"


def _html_row(cell: str, values: Iterable[str]) -> str:
    styled = zip(NOW_COLUMNS.values(), values, strict=True)
    cells = [f'<{cell} style="{style}">{html.escape(value)}</{cell}>' for style, value in styled]
    return f"<tr>{''.join(cells)}</tr>"


def now_rows(now: LiveRound) -> list[list[str]]:
    """Return the values of NOW_COLUMNS for each envoy of the open round that is named."""
    return [
        [
            envoy.name,
            f"{doing_of(envoy)}: {envoy.why}" if envoy.why else doing_of(envoy),
            show_pace(envoy) or "-",
            show_left(envoy) or "-",
            show_memory(envoy) or "-",
        ]
        for envoy in now.envoys
    ]


def live_sentence(now: LiveRound, width: int | None = None) -> str:
    """Return what happens in the open round as one sentence, such as "round 3 of 20, 41 s: a train 120/400, b done".

    Pace and time left of each envoy are in it, unless it would not fit into a line of `width` characters.
    """
    # Where there are many, those that are done are of less interest.
    named = now.envoys if len(now.envoys) <= MOST_ENVOYS_SHOWN else sorted(now.envoys, key=lambda e: e.state == "done")
    named = named[:MOST_ENVOYS_SHOWN]
    others = now.others + len(now.envoys) - len(named)
    more = [f"{others} more"] if others else []

    def say(describe: Callable[[EnvoyProgress], str]) -> str:
        names = [f"{envoy.name} {describe(envoy)}" for envoy in named]
        return f"{_heading(now)}: {', '.join(names + more) or 'nobody has a task'}{_left(now)}"

    sentence = say(describe_envoy)
    if width is None or len(sentence) <= width:
        return sentence
    sentence = say(doing_of)
    # A second line could not be replaced.
    return sentence if len(sentence) <= width else sentence[: max(0, width - 3)] + "..."


def live_title(now: LiveRound) -> str:
    """Return how far the experiment is, such as "round 3 of 20, 41 s; about 12 min 00 s left"."""
    return _heading(now) + _left(now)


def _heading(now: LiveRound) -> str:
    return f"round {now.live} of {now.rounds}, {show_seconds(now.seconds)}"


def _left(now: LiveRound) -> str:
    if now.seconds_left is None or now.live >= now.rounds:
        return ""
    return f"; about {show_seconds(now.seconds_left)} left"


def describe_envoy(envoy: EnvoyProgress) -> str:
    """Return what an envoy does and how fast, such as "train 120/400 (loss 0.530) at 35 clips/s, 12 s left"."""
    pace, left = show_pace(envoy), show_left(envoy)
    if envoy.why:
        return f"{doing_of(envoy)}: {envoy.why}"
    return doing_of(envoy) + (f" at {pace} clips/s" if pace else "") + (f", {left} left" if left else "")


def doing_of(envoy: EnvoyProgress) -> str:
    """Return what an envoy does, such as "train 120/400 (loss 0.530)" or "download 12.3 MB of 360 MB"."""
    if envoy.state == "offline":
        return "offline" + (time.strftime(" since %H:%M:%S", time.localtime(envoy.since)) if envoy.since else "")
    if envoy.state != "works":
        return envoy.state
    if envoy.transfer:
        return f"{envoy.transfer} {show_bytes(envoy.bytes_moved)} of {show_bytes(envoy.bytes_total)}"
    if not envoy.task:
        return "at work"
    task = "validate" if envoy.task == VALIDATE else envoy.task
    steps = f" {envoy.step}/{envoy.total}" if envoy.total else f" {envoy.step}" if envoy.step else ""
    loss = f" (loss {envoy.values['loss']:.3f})" if "loss" in envoy.values else ""
    silent = "" if envoy.silent_seconds is None else f", no word for {show_seconds(envoy.silent_seconds)}"
    return task + steps + loss + silent


def show_pace(envoy: EnvoyProgress) -> str:
    """Return how many clips an envoy takes a second, "" where that is not known."""
    pace = envoy.clips_per_second
    return "" if pace is None else f"{pace:.0f}" if pace >= 10 else f"{pace:.1f}"


def show_left(envoy: EnvoyProgress) -> str:
    """Return how long the steps or the transfer of an envoy will take, "" where that is not known."""
    if envoy.seconds_left is None or envoy.silent_seconds is not None:
        return ""
    return show_seconds(envoy.seconds_left)


def show_memory(envoy: EnvoyProgress) -> str:
    """Return the memory of an envoy's worker, such as "880 MB, GPU 2.10 GB"; "" where that is not known."""
    memory, gpu = envoy.memory_bytes, envoy.gpu_memory_bytes
    return (show_bytes(memory) if memory else "") + (f", GPU {show_bytes(gpu)}" if gpu else "")
