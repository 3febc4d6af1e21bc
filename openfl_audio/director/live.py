"""State of the envoys of an experiment at the moment, as far as they report it."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from openfl_audio.protocol.messages import ProgressReport

# Between two reports of an envoy: while somebody looks, and while nobody does.
WATCHED_SECONDS, UNWATCHED_SECONDS = 1.0, 4.0
# After so many intervals without a report something is wrong with the envoy or its link.
SILENT_INTERVALS = 3
# Somebody who asked for the state of an experiment may ask again.
LOOK_SECONDS = 30.0


@dataclass
class Transfer:
    """A running transfer between an envoy and the director.

    Attributes:
        direction: "download" or "upload", as the envoy sees it.
        total: how many bytes there are.
        moved: how many have crossed.
        began: when it began, in seconds of `time.monotonic`.
    """

    direction: str
    total: int
    moved: int = 0
    began: float = field(default_factory=time.monotonic)

    async def counting(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield chunks, and count their bytes."""
        async for chunk in chunks:
            self.moved += len(chunk)
            yield chunk

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at the pace so far, in seconds."""
        seconds = time.monotonic() - self.began
        return seconds / self.moved * max(0, self.total - self.moved) if self.moved else None


class Live:
    """The last reports of an experiment's envoys and their running transfers, in memory only."""

    def __init__(self) -> None:
        self._reports: dict[str, ProgressReport] = {}
        self._heard: dict[str, tuple[float, float]] = {}  # when, and after how many seconds the next report is due
        self._transfers: dict[str, Transfer] = {}
        self._watchers = 0
        self._looked = -LOOK_SECONDS

    def note(self, report: ProgressReport) -> float:
        """Keep a report, and return after how many seconds the next one is welcome."""
        is_seen = self._watchers or time.monotonic() - self._looked < LOOK_SECONDS
        interval = WATCHED_SECONDS if is_seen else UNWATCHED_SECONDS
        self._reports[report.envoy] = report
        self._heard[report.envoy] = time.monotonic(), interval
        return interval

    def silent_seconds(self, envoy: str) -> float | None:
        """Return for how long `envoy` has not reported, None while that is no longer than its reports may take."""
        heard, interval = self._heard[envoy]
        seconds = time.monotonic() - heard
        return seconds if seconds > SILENT_INTERVALS * interval else None

    def of(self, envoy: str, round_number: int) -> ProgressReport | None:
        """Return the last report of `envoy` on a round, if there is one."""
        report = self._reports.get(envoy)
        return report if report is not None and report.round == round_number else None

    @contextmanager
    def transfer(self, envoy: str, direction: str, n_bytes: int) -> Iterator[Transfer]:
        """Show a transfer of `envoy`, "download" or "upload", for as long as the block lasts."""
        transfer = self._transfers[envoy] = Transfer(direction, n_bytes)
        try:
            yield transfer
        finally:
            # One that is made again, as the connection broke, may have begun before this one ends.
            if self._transfers.get(envoy) is transfer:
                del self._transfers[envoy]

    def transfer_of(self, envoy: str) -> Transfer | None:
        """Return the running transfer of `envoy`, if there is one."""
        return self._transfers.get(envoy)

    def looked(self) -> None:
        """Note that somebody has asked for the state of the experiment."""
        self._looked = time.monotonic()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note that somebody watches for as long as the block lasts."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1


class Clock:
    """Measures what each envoy's part of a round took: the download of the model, its tasks, and the upload."""

    def __init__(self) -> None:
        self._spans: dict[str, dict[str, tuple[float, float]]] = {}

    def restart(self) -> None:
        """Forget the round before; what of it is still on its way is not measured."""
        self._spans = {}

    @contextmanager
    def measure(self, envoy: str, part: str) -> Iterator[None]:
        """Measure a block that is a "download" or an "upload" of an envoy. Of a repeated one the last counts."""
        spans, began = self._spans, time.monotonic()
        yield
        spans.setdefault(envoy, {})[part] = began, time.monotonic()

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return seconds by envoy and part; "tasks" is what lies between download and upload."""
        return {envoy: _seconds(spans) for envoy, spans in sorted(self._spans.items())}


def _seconds(spans: dict[str, tuple[float, float]]) -> dict[str, float]:
    seconds = {part: end - began for part, (began, end) in spans.items()}
    if "download" in spans and "upload" in spans:
        seconds["tasks"] = max(0.0, spans["upload"][0] - spans["download"][1])
    return {part: round(value, 4) for part, value in seconds.items()}
