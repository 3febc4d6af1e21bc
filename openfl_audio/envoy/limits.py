"""Limits of a worker and of all that it starts: memory, CPU time, and the time of tasks.

They are the envoy's to keep, as a task may switch off whatever its own process does. The kernel does it where the envoy
may make control groups; elsewhere the envoy looks at the processes again and again.
"""

import time
from dataclasses import dataclass, field

import psutil

from openfl_audio.envoy.cgroups import Cgroup
from openfl_audio.envoy.settings import EnvoySettings

# The worker ends itself when a task takes too long, and tells where that was; the envoy ends it when it does not.
GRACE_SECONDS = 10.0


class RoundClock:
    """Says which tasks a worker is at, and since when: the relay hands them out, and what watches it reads.

    Attributes:
        rounds: how many times tasks were handed out.
    """

    def __init__(self) -> None:
        self.rounds = 0
        self._tasks = 0
        self._since: float | None = None

    def hand_out(self, tasks: int) -> None:
        """Note that a worker was told of so many tasks, and asks for the model next."""
        self.rounds, self._tasks, self._since = self.rounds + 1, tasks, None

    def begin(self) -> None:
        """Note that it got the model."""
        self._since = time.monotonic()

    def end(self) -> None:
        """Note that it sends its update, or asks for other tasks."""
        self._since = None

    def seconds_of_task(self) -> float:
        """Return the seconds that a task takes now, if those of a round take as long as each other."""
        since = self._since
        return 0.0 if since is None else max(0.0, time.monotonic() - since - GRACE_SECONDS) / max(1, self._tasks)


@dataclass
class Watch:
    """Compares what a worker takes with the limits of its site, again and again."""

    pid: int
    group: Cgroup | None
    settings: EnvoySettings
    clock: RoundClock
    _times: dict[tuple[int, float], float] = field(default_factory=dict)
    _round: int = 0
    _before: float = 0.0

    def excess(self) -> str:
        """Return which limit the worker exceeds, or nothing."""
        memory_limit, cpu_limit = self.settings.memory_limit_gb * 1e9, self.settings.round_cpu_seconds
        task_limit = self.settings.task_timeout_seconds
        if self.group is None or not self.group.limits_memory:
            held = memory_of(self.pid, memory_limit)
            if held > memory_limit:
                return f"it held {held / 1e9:.1f} GB of memory, more than memory_limit_gb: {memory_limit / 1e9:.1f}"
        if cpu_limit is not None and (taken := self._cpu_seconds_of_round()) > cpu_limit:
            return f"it took {taken:.0f} s of CPU time in a round, more than round_cpu_seconds: {cpu_limit:g}"
        if task_limit is not None and self.clock.seconds_of_task() > task_limit:
            return f"its tasks took longer than task_timeout_seconds: {task_limit:g}"
        return ""

    def ended(self) -> str:
        """Return for which limit the kernel has ended the worker, if it has."""
        if self.group is not None and self.group.ran_out_of_memory:
            return f"it wanted more memory than memory_limit_gb: {self.settings.memory_limit_gb:.1f}"
        return ""

    def _cpu_seconds_of_round(self) -> float:
        taken = self.group.cpu_seconds if self.group else self._cpu_seconds()
        if self._round != self.clock.rounds:
            self._round, self._before = self.clock.rounds, taken
        return taken - self._before

    def _cpu_seconds(self) -> float:
        """Return the CPU time of all that was seen below the worker's keeper.

        Of a process that has ended either its parent knows, where that waited for it, or what was seen of it last.
        """
        reaped = 0.0
        for process in tree_of(self.pid):
            try:
                times, began = process.cpu_times(), process.create_time()
            except psutil.NoSuchProcess:
                continue
            self._times[process.pid, began] = times.user + times.system
            reaped += times.user + times.system + times.children_user + times.children_system
        return max(reaped, sum(self._times.values()))


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
