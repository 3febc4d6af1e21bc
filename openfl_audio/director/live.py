"""State of the envoys of an experiment at the moment, as far as they report it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from openfl_audio.protocol.messages import ProgressReport

# Between two reports of an envoy: while somebody looks, and while nobody does.
WATCHED_SECONDS, UNWATCHED_SECONDS = 1.0, 4.0
# Somebody who asked for the state of an experiment may ask again.
LOOK_SECONDS = 30.0


class Live:
    """The last reports of an experiment's envoys, in memory only."""

    def __init__(self) -> None:
        self._reports: dict[str, ProgressReport] = {}
        self._watchers = 0
        self._looked = -LOOK_SECONDS

    def note(self, report: ProgressReport) -> float:
        """Keep a report, and return after how many seconds the next one is welcome."""
        self._reports[report.envoy] = report
        is_seen = self._watchers or time.monotonic() - self._looked < LOOK_SECONDS
        return WATCHED_SECONDS if is_seen else UNWATCHED_SECONDS

    def of(self, envoy: str, round_number: int) -> ProgressReport | None:
        """Return the last report of `envoy` on a round, if there is one."""
        report = self._reports.get(envoy)
        return report if report is not None and report.round == round_number else None

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
