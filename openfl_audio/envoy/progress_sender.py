"""A worker's thread that tells the director how far its task is: one small message a second at most."""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import psutil
import torch

from openfl_audio.node.progress import Progress, current
from openfl_audio.protocol.messages import MAX_LOG_CHARACTERS, MAX_VALUES, ProgressReport

logger = logging.getLogger(__name__)

Reports = Literal["nothing", "steps", "losses", "logs"]
SECONDS = 1.0
# After a report that failed, the next one comes later.
TIMEOUT_SECONDS = 5.0
# Room in a report for the note that something is left out.
NOTE_CHARACTERS = 100


class ProgressSender:
    """Sends the progress of this process's task for as long as the process lives.

    What leaves is chosen by `reports`: with "steps" the task, its step and pace, the memory that the process holds;
    with "losses" also the values that the task reports, and with "logs" what is written to the file `log` from now on.
    """

    def __init__(
        self, send: Callable[[ProgressReport], float], envoy: str, experiment: str, reports: Reports, log: int
    ) -> None:
        """Report by calling `send`, which returns after how many seconds the next report is wanted.

        `log` is the descriptor of a file that can be read: its name may be out of this process's sight.
        """
        self._report = send
        self._envoy, self._experiment, self._reports = envoy, experiment, reports
        self._process = psutil.Process()
        self._log, self._read = log, os.fstat(log).st_size

    def start(self) -> None:
        """Start the thread, unless nothing is to be sent. It ends with the process."""
        if self._reports != "nothing":
            threading.Thread(target=self._run, daemon=True, name="progress").start()

    def _run(self) -> None:
        sent, pause = current(), SECONDS
        while True:
            time.sleep(pause)
            progress, log = current(), self._new_log()
            # A task without news is reported as well: of one that the director hears nothing of, it says so.
            if not log and not progress.task and progress is sent:
                continue
            sent = progress
            try:
                pause = self._send(progress, log)
            # A task must go on whatever happens here, and its next step may be told as well.
            except (OSError, EOFError, ValueError, TypeError, RuntimeError, psutil.Error) as error:
                logger.debug("progress was not sent: %s", error)
                pause = TIMEOUT_SECONDS

    def flush(self) -> None:
        """Send what has been printed since the last report, before the process ends."""
        log = self._new_log()
        if log:
            with contextlib.suppress(OSError, EOFError, ValueError, RuntimeError, psutil.Error):
                self._send(current(), log)

    def _new_log(self) -> str:
        """Return what was printed since the last call; of much the last part, and how much is left out."""
        if self._reports != "logs":
            return ""
        try:
            end = os.fstat(self._log).st_size
            # A task may print gigabytes.
            new_bytes = end - self._read
            left_out = new_bytes - MAX_LOG_CHARACTERS + NOTE_CHARACTERS if new_bytes > MAX_LOG_CHARACTERS else 0
            new = os.pread(self._log, new_bytes - left_out, self._read + left_out).decode(errors="replace")
            self._read = end
        except OSError:
            return ""
        return f"[{left_out} bytes are left out]\n{new}" if left_out else new

    def _send(self, progress: Progress, log: str) -> float:
        """Send the progress, and return after how many seconds the director would like to hear more."""
        values = numbers(progress.values) if self._reports in ("losses", "logs") else {}
        report = ProgressReport(
            experiment=self._experiment,
            envoy=self._envoy,
            round=progress.round_number,
            task=progress.task,
            seconds=time.monotonic() - progress.began if progress.task else 0.0,
            step=progress.step,
            total=progress.total,
            clips=progress.clips,
            values=values,
            memory_bytes=self._process.memory_info().rss,
            gpu_memory_bytes=gpu_memory_bytes(),
            log=log,
        )
        return max(SECONDS, self._report(report))


def gpu_memory_bytes() -> int:
    """Return how much memory this process holds on its GPUs, 0 if it uses none."""
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return those of the values that are finite numbers."""
    found = {}
    for name, value in list(values.items())[:MAX_VALUES]:
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            number = float(value)
            if math.isfinite(number):
                found[name] = number
    return found
