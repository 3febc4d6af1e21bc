"""A worker's process as its envoy sees it: started, watched for what it takes, ended with all below it."""

import contextlib
import logging
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from openfl_audio.envoy.cgroups import Cgroup
from openfl_audio.envoy.keeper import STOP_SECONDS as WORKER_STOP_SECONDS
from openfl_audio.envoy.limits import Watch, tree_of
from openfl_audio.envoy.link import make_pair

logger = logging.getLogger("envoy")

# A worker is killed when it takes longer than its keeper allows.
STOP_SECONDS = 2 * WORKER_STOP_SECONDS
# Loading torch takes seconds, on a slow disk a minute. Without an end, what blocks a worker would stay unknown.
READY_SECONDS = 300.0
# Where a signal ends what it runs, bubblewrap ends with its number and this one.
BWRAP_SIGNAL = 128
# Between two looks at what a worker takes.
WATCH_SECONDS = 0.2
# Looking takes at most a twentieth of the time, also where it takes long.
WATCH_PAUSES = 19
# Chunks of models, up to a megabyte each, come from and go back to the heap. By glibc's defaults it would give each
# back to the system and ask for it again, which costs more time than filling it.
REUSED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


class Worker(subprocess.Popen):
    """A worker with its keeper, in a session of its own: Ctrl-C reaches the envoy, which then ends it.

    Its keeper ends when its standard input does, so nothing outlives the envoy.

    Attributes:
        link: the envoy's end of the socket that is the worker's standard input.
        room: the folder into which it may write, until it enters that of an experiment.
        group: its control group, if it has one.
        is_confined: whether it is in a sandbox.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], room: Path, group: Cgroup | None, is_confined: bool
    ) -> None:
        self.room, self.group, self.is_confined = room, group, is_confined
        keeper = [sys.executable, "-m", "openfl_audio.envoy.keeper", str(group.path) if group else ""]
        self.link, theirs = make_pair()
        with theirs:
            super().__init__(
                [*keeper, *command], stdin=theirs.fileno(), start_new_session=True, env={**REUSED_MEMORY, **variables}
            )

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> str:
        """Wait for its first message: its sandbox is made, and its room can be moved. Returns why none came in time.

        Of a worker that has ended, its exit code tells more.
        """
        with contextlib.suppress(EOFError, OSError):
            if not select.select([self.link], [], [], seconds)[0]:
                return f"it has not loaded its libraries within {seconds:g} s"
            self.link.receive()
        return ""

    def ended_by(self) -> str:
        """Return how it has ended, "" if as it should."""
        code = self.returncode
        if self.is_confined and code > BWRAP_SIGNAL:
            code = BWRAP_SIGNAL - code
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}" if code else ""

    def end(self) -> None:
        """End it with all that it has started, and remove what was made for it."""
        end_process(self)
        if self.group is not None:
            self.group.remove()
        shutil.rmtree(self.room, ignore_errors=True)  # of an experiment's room `downloads` takes care


def wait_within(worker: Worker, watch: Watch) -> str:
    """Wait until a worker has ended. Returns "", or which limit it exceeded, for which it was killed."""
    pause = WATCH_SECONDS
    while True:
        try:
            worker.wait(pause)
            return watch.ended()
        except subprocess.TimeoutExpired:
            started = time.monotonic()
            excess = watch.excess()
            pause = max(WATCH_SECONDS, WATCH_PAUSES * (time.monotonic() - started))
        if excess:
            kill_below(worker.pid)
            worker.wait()
            return excess


def kill_below(pid: int) -> None:
    """Kill all processes below `pid`, which hears of that."""
    for process in tree_of(pid)[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end_process(worker: subprocess.Popen) -> None:
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
