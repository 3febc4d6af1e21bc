"""Processes of a federation on this machine, and what they cost."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rounds_peers.workloads import TOLERANCE, WrongResultError
from openfl_audio.experiments.local_federation import LocalFederation

REPOSITORY = Path(__file__).resolve().parents[2]
READY_SECONDS = 120.0
GIVE_UP_SECONDS = 600.0
"""The longest that a submission or a round may take."""

# Children with these words in their command are an envoy's workers; all others count as the process that began them.
WORKERS = ("openfl_audio.envoy.worker", "flwr-clientapp", "nvflare.private.fed.app.client.worker_process")


class BenchmarkError(RuntimeError):
    """There is nothing to report; the message says why."""


@dataclass(frozen=True)
class Job:
    """A run that is asked of an engine; `sandbox` is a setting of our envoys, `secure` hides their updates."""

    workload: str
    envoys: int
    rounds: int
    tls: bool = False
    float16: bool = False
    sandbox: str = "use"
    secure: bool = False

    @property
    def names(self) -> list[str]:
        """Return the names of the envoys."""
        return [f"envoy_{number}" for number in range(1, self.envoys + 1)]


@dataclass(frozen=True)
class Measured:
    """The figures of a run. `seconds` has a number for each round; bytes are those of one envoy in one round.

    `first_round` is what only this engine can tell of the first round.
    """

    seconds: list[float]
    submit_to_first_round: float
    rss_mb: dict[str, float]
    bytes_up: int | None = None
    bytes_down: int | None = None
    first_round: dict[str, float] = field(default_factory=dict)

    def seconds_per_round(self) -> dict[str, float]:
        """Summarise the seconds of all rounds but the first, in which an engine starts up."""
        return summarise(self.seconds[1:])


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, least and most of the seconds, rounded to milliseconds."""
    values = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(value, 3) for name, value in values.items()}


class Processes(LocalFederation):
    """Leaves nothing behind: children that outlive the process that began them are killed with its group."""

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        groups = [self.pid(name) for name in self._processes]
        super().__exit__(*error)
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def check(self) -> None:
        """Raises StartError if one of them has ended."""
        self._check_alive()


class MemoryWatch:
    """Peak resident memory of processes and all their children, in MB, read twice a second."""

    def __init__(self, director: int, envoys: Iterable[int]) -> None:
        """A worker that is the envoy itself, as in stock OpenFL, needs no word here: see `peaks`."""
        self._roots = {director: "director", **dict.fromkeys(envoys, "envoy")}
        self._peaks: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self) -> dict[str, float]:
        """Return the peaks of the largest director, envoy and worker.

        What runs beside director or envoy for them is added to it.
        """
        self._look()
        totals: dict[str, list[float]] = {"director": [], "envoy": [], "worker": []}
        for (role, _), processes in self._peaks.items():
            # An envoy's workers follow each other, a director and its helpers run at the same time.
            totals[role].append(max(processes.values()) if role == "worker" else sum(processes.values()))
        return {role: round(max(values or totals["envoy"])) for role, values in totals.items()}

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        for root, role in self._roots.items():
            for pid in _tree(root):
                # A process that has ended keeps the peak that was read last.
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    command = Path(f"/proc/{pid}/cmdline").read_text()
                    if "VmHWM:" in status:  # a zombie has no memory
                        kind = "worker" if any(word in command for word in WORKERS) else role
                        peak = status.partition("VmHWM:")[2].split()[0]
                        self._peaks[kind, root][pid] = int(peak) * 1024 / 1e6


def _tree(pid: int) -> list[int]:
    """`pid` and its children, and theirs."""
    found = [pid]
    for parent in found:
        # A child is listed with the thread that began it.
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


@contextlib.contextmanager
def time_limit(sentence: str) -> Iterator[None]:
    """Raises BenchmarkError in the middle of whatever takes longer than GIVE_UP_SECONDS."""

    def give_up(*_: object) -> None:
        raise BenchmarkError(f"given up: {sentence} after {GIVE_UP_SECONDS:.0f} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, GIVE_UP_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def make_environment(folder: Path, program: str, requirement: str) -> None:
    """Make a virtual environment with `requirement`, which brings `program`, unless it is there.

    What other frameworks require and what OpenFL requires exclude each other.
    """
    if (folder / "bin" / program).exists():
        return
    say(f"installing {requirement} into {folder}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=sys.stderr)
    install = [str(folder / "bin" / "pip"), "install", "--quiet", requirement, "numpy"]
    subprocess.run(install, check=True, stdout=sys.stderr)


def follow_report(report: Path, rounds: int, what: str, processes: Processes) -> list[dict]:
    """Return the JSON lines that a peer's server writes: one when `what`, such as "the job", has started, one a round.

    Raises BenchmarkError when one takes too long, StartError if a process ends, and WrongResultError if the last model
    is "off" by more than rounding.
    """
    lines = follow_lines(report, rounds, what, processes)
    if not lines[-1]["off"] <= TOLERANCE:
        raise WrongResultError(f"after {rounds} rounds a weight is {lines[-1]['off']:.2g} away from what it should be")
    return lines


def follow_lines(report: Path, rounds: int, what: str, processes: Processes) -> list[dict]:
    """Return the lines of `follow_report`, whatever they hold. Raises BenchmarkError and StartError as it does."""
    lines: list[dict] = []
    while len(lines) <= rounds:
        number = len(lines)
        with time_limit(f"round {number} did not end" if number else f"{what} did not start"):
            lines.append(_next_line(report, number, processes))
        say(f"round {number} ended" if number else f"{what} has started")
    return lines


def _next_line(report: Path, number: int, processes: Processes) -> dict:
    while True:
        processes.check()
        if report.exists():
            lines = report.read_text().split("\n")
            if len(lines) > number + 1:  # the last piece is what has no end of line yet
                return json.loads(lines[number])
        time.sleep(0.1)


def say(sentence: str) -> None:
    """Progress; standard output is the result's alone."""
    print(f"==> {sentence}", file=sys.stderr, flush=True)
