"""Limits hold for what leaves its parent as well: CPU time, the time of tasks, and what control groups count."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openfl_audio.envoy import cgroups, limits
from openfl_audio.envoy.cgroups import Cgroup, Cgroups, own_group
from openfl_audio.envoy.limits import RoundClock, Watch
from openfl_audio.envoy.settings import EnvoySettings
from openfl_audio.envoy.worker_process import Worker, end_process

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans on")]

DEADLINE_SECONDS = 60
# A process that leaves session and parent, and one that its parent reaps; each takes a second of CPU time.
BURN = "import time\nwhile time.process_time() < 1: pass\n"
LEAVE = "import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  exec({!r})\n os._exit(0)"
BURNERS = {
    "a daemon": LEAVE.format(f"{BURN}time.sleep(600)"),
    "a child that ends": f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}], check=True)",
}


def settings_of(folder: Path, **changes) -> EnvoySettings:
    return EnvoySettings(director_host="127.0.0.1", director_port=1, work_dir=folder, **changes)


def kept(code: str, group: str = "") -> subprocess.Popen:
    command = [sys.executable, "-m", "openfl_audio.envoy.keeper", group, sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize("burner", BURNERS)
def test_cpu_time_of_what_left_or_ended_counts_from_when_tasks_are_handed_out(tmp_path, burner):
    clock = RoundClock()
    keeper = kept(f"{BURNERS[burner]}\nimport time; time.sleep(600)")
    try:
        watch = Watch(keeper.pid, None, settings_of(tmp_path, round_cpu_seconds=0.9), clock)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (excess := watch.excess()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert excess == "it took 1 s of CPU time in a round, more than round_cpu_seconds: 0.9"
        clock.hand_out(1)
        assert watch.excess() == ""
    finally:
        end_process(keeper)


def test_the_time_of_tasks_is_counted_while_the_worker_has_the_model_and_has_not_answered(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    clock = RoundClock()
    watch = Watch(os.getpid(), None, settings_of(tmp_path, task_timeout_seconds=30.0), clock)
    clock.hand_out(2)
    now += 1000  # the director has not sent the model yet
    assert watch.excess() == ""
    clock.begin()
    now += 2 * 30 + limits.GRACE_SECONDS
    assert watch.excess() == ""
    now += 0.1
    assert watch.excess() == "its tasks took longer than task_timeout_seconds: 30"
    clock.end()
    assert watch.excess() == ""


def test_memory_is_the_kernels_to_limit_where_it_does(tmp_path):
    for name, content in (("memory.events", "low 0\noom_kill 0\n"), ("cpu.stat", "usage_usec 2500000\n")):
        (tmp_path / name).write_text(content)
    group = Cgroup(tmp_path, limits_memory=True)
    clock = RoundClock()
    watch = Watch(os.getpid(), group, settings_of(tmp_path, memory_limit_gb=1e-9, round_cpu_seconds=2.0), clock)
    clock.hand_out(1)
    assert (watch.excess(), watch.ended()) == ("", "")
    (tmp_path / "cpu.stat").write_text("usage_usec 5000000\n")
    assert watch.excess() == "it took 2 s of CPU time in a round, more than round_cpu_seconds: 2"
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 3\n")
    assert watch.ended() == "it wanted more memory than memory_limit_gb: 0.0"


CGROUPS = """
import subprocess, sys, time
from openfl_audio.envoy.cgroups import Cgroups, own_group
from tests.unit.envoy.test_limits import BURNERS, kept
before = own_group()
gone = subprocess.Popen(["true"])
gone.wait()
left = [before / f"openfl-audio-{gone.pid}", before / f"openfl-audio-{gone.pid}-worker"]
for group in left: group.mkdir()
groups = Cgroups()
assert not any(group.exists() for group in left), "groups of an envoy that was killed"
assert groups, groups.fault
assert own_group().parent == before
group = groups.make(500_000_000)
keeper = kept(BURNERS["a daemon"] + "\\nimport time; time.sleep(600)", str(group.path))
while group.cpu_seconds < 1: time.sleep(0.05)
print(len((group.path / "cgroup.procs").read_text().split()))
group.remove()
print(keeper.wait(30), group.path.exists())
groups.close()
assert own_group() == before
"""


@pytest.mark.parametrize(
    ("controllers", "says"),
    [("cpu memory\n", "limits of workers are kept by control groups"), ("cpu\n", "memory controller is not delegated")],
)
def test_an_envoy_says_which_limits_the_kernel_keeps(tmp_path, monkeypatch, controllers, says):
    (tmp_path / "cgroup.controllers").write_text(controllers)
    monkeypatch.setattr(cgroups, "own_group", lambda: tmp_path)
    assert says in Cgroups().keeps()


def test_a_worker_that_never_gets_ready_is_told_of_and_not_waited_for(tmp_path):
    worker = Worker(["sleep", "600"], os.environ, tmp_path / "room", None, is_confined=False)
    try:
        assert worker.wait_until_ready(0.2) == "it has not loaded its libraries within 0.2 s"
    finally:
        worker.end()
    assert worker.wait_until_ready(30) == ""  # its exit code tells the rest


def test_a_control_group_counts_and_ends_all_that_is_started_in_it():
    try:
        own_group()
    except OSError as error:
        pytest.skip(f"no control group is delegated here: {error}")
    ended = subprocess.run([sys.executable, "-c", CGROUPS], capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert ended.stdout.split() == ["3", "-9", "False"], ended.stderr
