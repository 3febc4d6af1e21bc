"""A part of the tree of control groups (cgroups(7), version 2) for each worker, where the system delegates one.

The kernel then counts the memory and the CPU time of all that a worker starts, however it leaves its parent.
"""

import contextlib
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger("envoy")

# A group has the envoy's process id in its name, and that of a worker another one behind it. The envoy has one, too: a
# group with controllers for its children has no process of its own.
PREFIX = "openfl-audio"
PROCS, SUBTREE = "cgroup.procs", "cgroup.subtree_control"
MICROSECONDS = 1_000_000
# A group can be removed a moment after its last process has been reaped.
REMOVE_SECONDS = 2.0


@dataclass(frozen=True)
class Cgroup:
    """The control group of a worker.

    Attributes:
        path: its folder.
        limits_memory: whether the kernel ends all of it when it holds more memory than it may.
    """

    path: Path
    limits_memory: bool

    @property
    def cpu_seconds(self) -> float:
        """CPU time that its processes have taken, those that have ended among them."""
        return _entry(self.path / "cpu.stat", "usage_usec") / MICROSECONDS

    @property
    def ran_out_of_memory(self) -> bool:
        """Tell whether the kernel has ended processes of it for lack of memory."""
        return self.limits_memory and _entry(self.path / "memory.events", "oom_kill") > 0

    def remove(self) -> None:
        """Kill what is left in the group, and remove it."""
        deadline = time.monotonic() + REMOVE_SECONDS
        while self.path.exists():
            try:
                (self.path / "cgroup.kill").write_text("1")
                self.path.rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    logger.warning("the control group %s cannot be removed: %s", self.path, error.strerror)
                    return
                time.sleep(0.02)


def _entry(file: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name), 0)


class Cgroups:
    """Control groups below that of this process; falsy where it may make none.

    Attributes:
        parent: the folder of the group that this process was started in.
        fault: why it may make none.
    """

    def __init__(self) -> None:
        self.parent, self.fault = Path(), ""
        self._memory = False
        try:
            self.parent = own_group()
            self._take()
        except OSError as error:
            self.fault = f"{error.filename or 'cgroup'}: {error.strerror or error}"

    def __bool__(self) -> bool:
        return not self.fault

    def keeps(self) -> str:
        """Return in a sentence who keeps the limits of workers, the kernel or the envoy."""
        if self.fault:
            return f"limits of workers are kept by the envoy, without control groups: {self.fault}"
        if not self._memory:
            return (
                f"the CPU time of workers is counted by control groups in {self.parent}; the limit of their memory is "
                "kept by the envoy, which looks at it five times a second, as the memory controller is not delegated"
            )
        return f"limits of workers are kept by control groups in {self.parent}"

    def _take(self) -> None:
        """Go into a group of this process's own, so that those beside it can have controllers."""
        self._remove_left_over()
        mine = self._mine
        mine.mkdir()
        controllers = (self.parent / "cgroup.controllers").read_text().split()
        try:
            (mine / PROCS).write_text(str(os.getpid()))
            if "memory" in controllers:
                (self.parent / SUBTREE).write_text("+memory")
                self._memory = True
        except OSError:
            (self.parent / PROCS).write_text(str(os.getpid()))
            mine.rmdir()
            raise

    @property
    def _mine(self) -> Path:
        return self.parent / f"{PREFIX}-{os.getpid()}"

    def _remove_left_over(self) -> None:
        """Remove the groups of envoys that were killed."""
        for group in self.parent.glob(f"{PREFIX}-*"):
            pid = group.name.removeprefix(f"{PREFIX}-").partition("-")[0]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                with contextlib.suppress(OSError):  # a worker may be about to end
                    group.rmdir()

    def make(self, memory_bytes: int) -> Cgroup:
        """Make a group that may hold so many bytes of memory. Raises OSError."""
        group = Cgroup(self.parent / f"{self._mine.name}-{uuid.uuid4().hex}", self._memory)
        group.path.mkdir()
        if self._memory:
            (group.path / "memory.max").write_text(str(memory_bytes))
            (group.path / "memory.oom.group").write_text("1")
            if (group.path / "memory.swap.max").exists():
                (group.path / "memory.swap.max").write_text("0")
        return group

    def close(self) -> None:
        """Remove the group of this process, which goes back to where it was."""
        if self:
            mine = self._mine
            try:
                if self._memory:
                    (self.parent / SUBTREE).write_text("-memory")
                (self.parent / PROCS).write_text(str(os.getpid()))
                mine.rmdir()
            except OSError as error:
                logger.warning("the control group %s cannot be removed: %s", mine, error.strerror)


def own_group() -> Path:
    """Return the folder of this process's group. Raises OSError where there is no version 2, or it may not be written.

    A group that systemd runs a login in is writable for root, and not delegated: there the kernel refuses controllers,
    as other processes are in it.
    """
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [(each[3], Path(each[4])) for each in mounts if each[each.index("-") + 1] == "cgroup2"]
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if not found or not own:
        raise FileNotFoundError(2, "there is no cgroup of version 2", "/sys/fs/cgroup")
    root, mount = found[0]
    group = mount / os.path.relpath(own[0], root)
    if not os.access(group, os.W_OK):
        raise PermissionError(13, "it is not delegated to this process", str(group))
    return group
