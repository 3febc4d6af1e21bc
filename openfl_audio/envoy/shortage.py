"""A disk of an envoy that is full, or cannot be written for another reason: an experiment waits, and says so."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("envoy")

RETRY_SECONDS = 1.0


def write_when_possible(write: Callable[[], object], to: Path, experiment: str, has_ended: Callable[[], bool]) -> None:
    """Call `write` until it succeeds, or has failed after the worker of `experiment` has ended; `to` is the file.

    It is called once at least: what has happened is written down, also where the worker has ended since.
    """
    while True:
        try:
            write()
            return
        except OSError as error:
            logger.warning("experiment '%s' waits: %s cannot be written: %s", experiment, to, error)
        if has_ended():
            return
        time.sleep(RETRY_SECONDS)
