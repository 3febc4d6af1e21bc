"""The rounds of an experiment in columns, as the browser draws them; for each envoy no more points than can be seen."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from statistics import median
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json
from typing_extensions import TypedDict

from openfl_audio.protocol.messages import ExperimentDetails
from openfl_audio.protocol.metrics import MEAN_OF_SITES
from openfl_audio.training.history import NOTES, Record, envoy_rows, note_sentences, table_row

# Points of all envoys' lines of one metric together, and the fewest that one line has.
MOST_POINTS, FEWEST_POINTS = 20_000, 100
# Points of a line of the whole experiment; of a longer one every second round is left out, or more.
MOST_ROUNDS = 4000
MOST_SENTENCES = 30
# Experiments whose rounds are kept at a time.
MOST_KEPT = 8
PHASES = ("download", "tasks", "upload")
NO_METRICS = ("round", NOTES, "sent", "seconds")
Series = dict[str, list[float | None]]


class _Nothing(TypedDict):
    """An object of JSON whose content is not needed."""


class _Brief(TypedDict, total=False):
    """A round's record without the values of its envoys, which are nearly all of it and take most of the reading."""

    round: int
    metrics: dict[str, Any]
    means_of_sites: dict[str, Any]
    aggregation: dict[str, Any]
    envoys: dict[str, _Nothing]
    refused: dict[str, Any]
    missing: list[str]
    notes: dict[str, Any]
    seconds: float
    bytes_up: int
    bytes_down: int
    timings: dict[str, Any]


_BRIEF = TypeAdapter(_Brief)


class Curves:
    """The rounds of one experiment.

    Attributes:
        rounds: the numbers of the rounds.
        metrics: the values of `history.table_row` by column, None where a round has none.
        phases: the median of the envoys' seconds for each phase.
        sizes: "sent" and "received" bytes, "seconds", and updates that "counted", were "refused" or "missing".
        envoys: values by metric and envoy, of the rounds in `envoy_rounds`.
        sentences: what did not count in the last rounds: round and sentence.
        stride: of how many rounds one has values of envoys. It doubles as rounds come.
    """

    def __init__(self, expected: int = 0) -> None:
        """Make room for an experiment of which so many rounds come at once."""
        self._expected = expected
        self.rounds: list[int] = []
        self.metrics: Series = {}
        self.phases: Series = {phase: [] for phase in PHASES}
        self.sizes: Series = {name: [] for name in ("seconds", "sent", "received", "counted", "refused", "missing")}
        self.envoy_rounds: list[int] = []
        self.envoys: dict[str, Series] = {}
        self.sentences: deque[tuple[int, str]] = deque(maxlen=MOST_SENTENCES)
        self.stride = 1

    def __len__(self) -> int:
        return len(self.rounds)

    def read(self, message: bytes) -> None:
        """Add the round of a message of a history; one that is no round's is left out."""
        record: Record = from_json(message) if len(self) % self.stride == 0 else dict(_BRIEF.validate_json(message))
        if "envoys" in record:
            self.add(record)

    def add(self, record: Record) -> None:
        """Add the record of the next round."""
        row, before = table_row(record), len(self)
        self.rounds.append(record["round"])
        _extend(self.metrics, before, {name: value for name, value in row.items() if name not in NO_METRICS})
        timings = list(record.get("timings", {}).values())
        medians = {phase: [seconds[phase] for seconds in timings if phase in seconds] for phase in PHASES}
        _extend(self.phases, before, {phase: median(values) for phase, values in medians.items() if values})
        sizes = {"seconds": record["seconds"], "sent": record["bytes_up"], "received": record["bytes_down"]}
        updates = {"counted": record["envoys"], "refused": record["refused"], "missing": record["missing"]}
        _extend(self.sizes, before, sizes | {name: len(who) for name, who in updates.items()})
        self.sentences.extend((record["round"], sentence) for sentence in note_sentences(record))
        if before % self.stride == 0:
            self._add_envoys(record)

    def _add_envoys(self, record: Record) -> None:
        before = len(self.envoy_rounds)
        self.envoy_rounds.append(record["round"])
        values: dict[str, dict[str, float]] = {}
        for row in envoy_rows(record):
            for name, value in row.items():
                if isinstance(value, float) and name not in PHASES and "/" not in name:
                    values.setdefault(name, {})[row["envoy"]] = value
        for name in {*values, *self.envoys}:
            _extend(self.envoys.setdefault(name, {}), before, values.get(name, {}))
        n_envoys = max((len(series) for series in self.envoys.values()), default=1)
        while max(len(self.envoy_rounds), self._expected / self.stride) > max(FEWEST_POINTS, MOST_POINTS // n_envoys):
            self._thin_out()

    def _thin_out(self) -> None:
        self.stride *= 2
        self.envoy_rounds = self.envoy_rounds[::2]
        for series in self.envoys.values():
            for envoy in series:
                series[envoy] = series[envoy][::2]

    def since(self, first: int, first_of_envoys: int) -> dict[str, Any]:
        """Return what the browser draws of the rounds from these on; those before it has already."""
        step = 1 + (len(self) - first) // MOST_ROUNDS
        part = slice(first, None, step)
        of_metrics = {name.removesuffix(MEAN_OF_SITES) for name in self.metrics}
        return {
            "first": first,
            "rounds": self.rounds[part],
            "metrics": _shortened(self.metrics, part),
            "phases": _shortened(self.phases, part),
            "sizes": _shortened(self.sizes, part),
            "envoyRounds": self.envoy_rounds[first_of_envoys:],
            "envoys": {
                name: _shortened(series, slice(first_of_envoys, None))
                for name, series in self.envoys.items()
                if name in of_metrics
            },
            "sentences": [f"round {number}: {sentence}" for number, sentence in self.sentences],
        }


def _extend(series: Series, before: int, values: Iterable[tuple[str, float]] | dict[str, float]) -> None:
    """Add the values of one more round to lines that have those of `before` rounds."""
    present = dict(values)
    for name in present.keys() - series.keys():
        series[name] = [None] * before
    for name, line in series.items():
        line.append(present.get(name))


def _shortened(series: Series, part: slice) -> Series:
    """Return part of the lines with numbers as short as a curve needs them."""
    return {name: [_short(value) for value in line[part]] for name, line in series.items()}


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


class Histories:
    """The curves of the experiments that were looked at last.

    Whoever asks for them must have been shown the experiment by the director in the same request.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, float], tuple[Curves, asyncio.Lock]] = {}

    async def of(self, details: ExperimentDetails, history: Callable[[int], AsyncIterator[bytes]]) -> Curves:
        """Return the curves of an experiment, with the rounds that are new from `history`."""
        key = details.name, details.submitted
        curves, lock = self._kept.pop(key) if key in self._kept else (Curves(details.round), asyncio.Lock())
        self._kept[key] = curves, lock
        for oldest in list(self._kept)[:-MOST_KEPT]:
            del self._kept[oldest]
        async with lock:
            if len(curves) < details.round:
                async for message in history(len(curves)):
                    curves.read(message)
        return curves
