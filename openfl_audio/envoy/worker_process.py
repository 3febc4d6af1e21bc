"""A worker's process as its envoy sees it: started, watched for the memory it holds, ended with all below it."""

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Sequence

import psutil

from openfl_audio.envoy.keeper import STOP_SECONDS as WORKER_STOP_SECONDS
from openfl_audio.envoy.link import make_pair

logger = logging.getLogger("envoy")

# A worker is killed when it takes longer than its keeper allows.
STOP_SECONDS = 2 * WORKER_STOP_SECONDS
# Between two looks at how much memory a worker holds.
WATCH_SECONDS = 0.2
# Looking takes at most a twentieth of the time, also where it takes long.
WATCH_PAUSES = 19
# Chunks of models, up to a megabyte each, come from and go back to the heap. By glibc's defaults it would give each
# back to the system and ask for it again, which costs more time than filling it.
REUSED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


class Worker(subprocess.Popen):
    """A worker with its keeper.

    Attributes:
        link: the envoy's end of the socket that is the worker's standard input.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.link, theirs = make_pair()
        with theirs:
            super().__init__(command, stdin=theirs.fileno(), start_new_session=True, env=REUSED_MEMORY | os.environ)


def wait_within(worker: Worker, limit: float) -> str:
    """Wait until a worker has ended. Returns "", or why it was killed: it held more than `limit` bytes of memory."""
    pause = WATCH_SECONDS
    while True:
        try:
            worker.wait(pause)
            return ""
        except subprocess.TimeoutExpired:
            started = time.monotonic()
            held = memory_of(worker.pid, limit)
            pause = max(WATCH_SECONDS, WATCH_PAUSES * (time.monotonic() - started))
        if held > limit:
            kill_below(worker.pid)
            worker.wait()
            return f"it held {held / 1e9:.1f} GB of memory, more than memory_limit_gb: {limit / 1e9:.1f}"


def memory_of(pid: int, limit: float = 0.0) -> int:
    """Return the bytes of memory that a process and those below it hold, of which shared pages count once.

    Sharing is looked into (it takes milliseconds a gigabyte) only where the sum of all resident sizes exceeds `limit`.
    """
    tree = tree_of(pid)
    resident = sum(_bytes_of(process, "rss") for process in tree)
    return resident if resident <= limit else sum(_bytes_of(process, "pss") for process in tree)


def _bytes_of(process: psutil.Process, kind: str) -> int:
    """Return the memory of a process: "rss", or "pss", in which a page of n processes counts as its n-th part."""
    try:
        if kind == "rss":
            return process.memory_info().rss
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.uss)  # only Linux tells how much is shared with how many
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return process.memory_info().rss if kind == "pss" else 0


def tree_of(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; none if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_below(pid: int) -> None:
    """Kill all processes below `pid`, which hears of that."""
    for process in tree_of(pid)[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end_worker(worker: Worker) -> None:
    """Ask the worker's keeper to end all that it keeps; kill them all if it does not."""
    worker.terminate()
    try:
        worker.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("a worker does not end, and is killed")
        kill_below(worker.pid)
        worker.kill()
        worker.wait()
    for pipe in filter(None, (worker.stdin, worker.stdout)):
        pipe.close()
