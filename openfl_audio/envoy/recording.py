"""Recording of an experiment's updates: the envoy writes down what it is about to send, and then sends it."""

import logging
import threading
import time
from collections.abc import Callable

from openfl_audio.envoy.job import Sending
from openfl_audio.envoy.rounds_client import RETRY_SECONDS
from openfl_audio.protocol.record import Record

logger = logging.getLogger("envoy")


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
            self._write(sending)
            self._last = sending.round
        threading.Thread(target=self._on_recorded, daemon=True, name="recorded").start()

    def _write(self, sending: Sending) -> None:
        while not self._has_ended():
            try:
                self._record.write("sent", experiment=self._experiment, **sending.model_dump())
                return
            except OSError as error:
                logger.warning(
                    "experiment '%s' waits: %s cannot be written: %s", self._experiment, self._record.path, error
                )
            time.sleep(RETRY_SECONDS)
