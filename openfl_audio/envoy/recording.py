"""Recording of an experiment's updates: the envoy writes down what it is about to send, and then sends it."""

import threading
from collections.abc import Callable

from openfl_audio.envoy.job import Sending
from openfl_audio.envoy.shortage import write_when_possible
from openfl_audio.protocol.record import Record


class Recording:
    """Writes down the updates of one experiment, a round once."""

    def __init__(
        self, record: Record, experiment: str, has_ended: Callable[[], bool], on_recorded: Callable[[], None]
    ) -> None:
        """Record for `experiment` until its worker `has_ended`; `on_recorded` is called while an update is sent."""
        self._record, self._experiment = record, experiment
        self._has_ended, self._on_recorded = has_ended, on_recorded
        self._last = -1

    def note(self, sending: Sending) -> None:
        """Write an update down, as soon as the disk takes it."""
        if sending.round > self._last:
            about = {"experiment": self._experiment, **sending.model_dump()}
            write_when_possible(
                lambda: self._record.write("sent", **about), self._record.path, self._experiment, self._has_ended
            )
            self._last = sending.round
        threading.Thread(target=self._on_recorded, daemon=True, name="recorded").start()
