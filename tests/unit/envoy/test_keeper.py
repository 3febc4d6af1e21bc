"""Processes that a worker leaves behind, and the memory that it holds: they are real, and none of them loads torch."""

import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from openfl_audio.envoy.limits import memory_of
from openfl_audio.envoy.worker_process import end_process, kill_below

pytestmark = pytest.mark.process

DEADLINE_SECONDS = 60
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to another process")

# Ways of a process to leave its parent; each writes its number and sleeps.
SLEEP = "import os, time; open('survivor', 'w').write(str(os.getpid())); os.rename('survivor', 'pid'); time.sleep(600)"
LEAVE = {
    "a session of its own": "subprocess.Popen([sys.executable, '-c', SLEEP], start_new_session=True)",
    "a shell that ends": "subprocess.run(['sh', '-c', 'setsid \"$0\" -c \"$1\" &', sys.executable, SLEEP])",
    "a daemon without its environment": (
        "os.fork() or (os.setsid(), os.fork() and os._exit(0), "
        "os.execve(sys.executable, [sys.executable, '-c', SLEEP], {}))"
    ),
    "a child that ignores being told to end": (
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN);' + SLEEP])"
    ),
}
WAIT = "\nwhile not os.path.exists('pid'): time.sleep(0.01)\n"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Start a worker that runs the given code, with its keeper, in the folder `tmp_path`."""
    started = []

    def keep(code: str) -> subprocess.Popen:
        code = f"import os, signal, subprocess, sys, time\nSLEEP = {SLEEP!r}\n{textwrap.dedent(code)}"
        command = [sys.executable, "-m", "openfl_audio.envoy.keeper", "", sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
        keeper = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, start_new_session=True, env=environment)
        started.append(keeper)
        return keeper

    yield keep
    for keeper in started:
        kill_below(keeper.pid)
        keeper.kill()
        keeper.wait()
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def is_gone(folder: Path) -> bool:
    return not psutil.pid_exists(int((folder / "pid").read_text()))


@linux_only
@pytest.mark.parametrize("way", LEAVE)
def test_what_left_a_worker_ends_when_the_worker_has_ended(keep, tmp_path, way):
    keeper = keep(LEAVE[way] + WAIT + "sys.exit(3)")
    assert keeper.wait(DEADLINE_SECONDS) == 3
    assert is_gone(tmp_path)


@linux_only
@pytest.mark.parametrize("way", LEAVE)
def test_what_left_a_worker_ends_when_the_worker_is_ended(keep, tmp_path, way):
    keeper = keep(LEAVE[way] + WAIT + "time.sleep(600)")
    wait_until((tmp_path / "pid").exists)
    end_process(keeper)
    assert keeper.returncode == -signal.SIGTERM
    assert is_gone(tmp_path)


@linux_only
@pytest.mark.parametrize("way", LEAVE)
def test_what_left_a_worker_counts_as_its_memory_and_ends_with_what_is_killed_for_it(keep, tmp_path, way):
    keeper = keep(LEAVE[way] + WAIT + "time.sleep(600)")
    wait_until((tmp_path / "pid").exists)
    left = int((tmp_path / "pid").read_text())
    wait_until(lambda: left in [process.pid for process in psutil.Process(keeper.pid).children(recursive=True)])
    kill_below(keeper.pid)
    assert keeper.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert is_gone(tmp_path)


@linux_only
def test_what_left_a_worker_ends_when_the_envoy_is_gone(keep, tmp_path):
    keeper = keep(LEAVE["a session of its own"] + WAIT + "time.sleep(600)")
    wait_until((tmp_path / "pid").exists)
    keeper.stdin.close()  # as the system does it for an envoy that was killed
    keeper.wait(DEADLINE_SECONDS)
    assert is_gone(tmp_path)


def test_a_worker_reads_what_the_envoy_writes(keep, tmp_path):
    keeper = keep("open('read', 'w').write(sys.stdin.readline())")
    keeper.stdin.write(b"a job\n")
    keeper.stdin.flush()
    assert keeper.wait(DEADLINE_SECONDS) == 0
    assert (tmp_path / "read").read_text() == "a job\n"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_keeper_ends_by_the_signal_that_ended_its_worker(keep, number):
    assert keep(f"os.kill(os.getpid(), {int(number)})").wait(DEADLINE_SECONDS) == -number


@linux_only
def test_pages_that_processes_share_count_once(keep, tmp_path):
    megabytes = 100
    keeper = keep(f"""
        import mmap
        shared = bytearray(b"x" * {megabytes << 20})
        for _ in range(4):
            if os.fork() == 0:
                sum(shared[::{mmap.PAGESIZE}])
                own = bytearray(b"y" * {megabytes << 18})
                open(f"ready {{os.getpid()}}", "w").close()
                time.sleep(600)
        time.sleep(600)
    """)
    wait_until(lambda: len(list(tmp_path.glob("ready *"))) == 4)
    held = memory_of(keeper.pid) / (1 << 20)
    assert 2 * megabytes < held < 3.2 * megabytes, "what is shared once, and four quarters that are not"


def test_sharing_is_looked_into_only_above_the_limit(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("this takes long")

    monkeypatch.setattr(psutil.Process, "memory_full_info", fail)
    assert memory_of(os.getpid(), limit=1e15) > 0
    with pytest.raises(AssertionError, match="this takes long"):
        memory_of(os.getpid(), limit=1.0)


def test_the_memory_of_a_process_that_has_ended_is_nothing():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert memory_of(ended.pid) == 0
