"""Recording of an experiment's updates: the envoy writes down what its worker is about to send, and then lets it."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable

from pydantic import ValidationError

from openfl_audio.envoy.job import Sending
from openfl_audio.envoy.rounds_client import RETRY_SECONDS
from openfl_audio.protocol.record import Record

logger = logging.getLogger("envoy")

MAX_LINE_BYTES = 4096


class Recording(threading.Thread):
    """Reads what a worker announces, as lines of JSON, until the worker has ended.

    The record is the envoy's: the worker runs code of others.
    """

    def __init__(self, record: Record, experiment: str, worker: subprocess.Popen, on_recorded: Callable[[], None]):
        """Record for `experiment`; `on_recorded` is called after each update, while that is sent."""
        super().__init__(daemon=True, name="recording")
        self._record, self._experiment, self._worker, self._on_recorded = record, experiment, worker, on_recorded

    def run(self) -> None:
        """Write each update down, and let the worker send it."""
        last = -1
        while self._worker.stdout and (line := self._worker.stdout.readline(MAX_LINE_BYTES)):
            try:
                sending = Sending.model_validate_json(line)
            except ValidationError:
                logger.info("experiment '%s': its worker said %r", self._experiment, line[:200])
                continue
            if sending.round > last:
                self._write(sending)
                last = sending.round
            if self._worker.stdin:
                try:
                    os.write(self._worker.stdin.fileno(), b"\n")
                except (OSError, ValueError):  # it has ended
                    return
            self._on_recorded()

    def _write(self, sending: Sending) -> None:
        while self._worker.poll() is None:
            try:
                self._record.write("sent", experiment=self._experiment, **sending.model_dump())
                return
            except OSError as error:
                logger.warning(
                    "experiment '%s' waits: %s cannot be written: %s", self._experiment, self._record.path, error
                )
            time.sleep(RETRY_SECONDS)
