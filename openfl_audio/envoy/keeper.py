"""The parent of a worker and of whatever it leaves behind: `-m openfl_audio.envoy.keeper GROUP COMMAND...` runs it.

A task may start processes that make themselves sessions of their own, and outlive their parents. On Linux these become
children of this process, which is a "subreaper" (prctl(2)). It ends them all when the worker has ended, when the envoy
has, or at a SIGTERM, and then ends as the worker did. Elsewhere it ends what still hangs below it. GROUP is the folder
of the control group for all of them, "" without one.
"""

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# A worker that is asked to end may take so long before it is killed.
STOP_SECONDS = 10.0
# Between two looks for processes that were killed and are not gone yet.
LOOK_SECONDS = 0.02


def main() -> int:
    """Keep the worker that the command line names, and return its exit code."""
    group, *command = sys.argv[1:]
    adopt_orphans()
    if group:
        Path(group, "cgroup.procs").write_text("0")  # this process
    wake, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    worker = subprocess.Popen(command)
    wait_for_end(worker, wake)
    return_code = end(worker)
    if return_code < 0:
        # The envoy reports by which signal the worker ended. The core of this process would be of no use.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -return_code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-return_code, signal.SIG_DFL)
        os.kill(os.getpid(), -return_code)
    return return_code


def adopt_orphans() -> None:
    """Become the parent of all processes below whose own parent ends. Raises OSError where Linux refuses."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def wait_for_end(worker: subprocess.Popen, wake: int) -> None:
    """Wait for the end of the worker or of the envoy, which holds the other end of standard input, or for SIGTERM.

    `wake` is a pipe that gets the number of each signal, as a byte.
    """
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    # That it was closed, and nothing else: what is in it is for the worker.
    poll.register(sys.stdin.fileno(), 0)
    while worker.poll() is None:
        for file, _ in poll.poll():
            if file != wake or signal.SIGTERM in os.read(wake, 1 << 10):
                return
        reap_orphans(worker)


def end(worker: subprocess.Popen) -> int:
    """End the worker, by force if it takes too long, and all that is left below this process. Returns its exit code."""
    worker.terminate()
    try:
        worker.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    while reap_orphans(worker):
        kill_children()
        time.sleep(LOOK_SECONDS)
    return worker.returncode


def reap_orphans(worker: subprocess.Popen) -> bool:
    """Reap orphans that have ended, and tell whether others have not, or the worker runs."""
    while True:
        try:
            # Looks without reaping, as the worker's exit code is for `worker`.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        if ended is None or (ended.si_pid == worker.pid and worker.returncode is None):
            return True
        os.waitpid(ended.si_pid, 0)


def kill_children() -> None:
    """Kill everything below this process."""
    import psutil  # takes megabytes, and beside most workers it is never needed

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main())
