"""One experiment on this node, from the download to the end."""

import contextlib
import logging
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from openfl_audio.envoy.approval import check_name, prepare_workspace
from openfl_audio.envoy.job import Job
from openfl_audio.envoy.link import Link, make_pair
from openfl_audio.envoy.policy import module_path, plain_reason
from openfl_audio.envoy.recording import Recording
from openfl_audio.envoy.relay import Relay
from openfl_audio.envoy.rounds_client import RoundsClient
from openfl_audio.envoy.worker_process import STOP_SECONDS, Worker, end_worker, wait_within
from openfl_audio.errors import ApprovalError, ArchiveError, ConnectionRefusedByDirectorError, SettingsError
from openfl_audio.protocol.bundle import Bundle, read_bundle

if TYPE_CHECKING:
    from openfl_audio.envoy.envoy import Envoy

logger = logging.getLogger("envoy")

# How much of a failed worker's output goes to the notebook: a traceback, not a novel.
REPORTED_CHARACTERS = 6000
# Of it in the record: a sentence.
MAX_RECORDED_CHARACTERS = 500
# Between two looks at what the site has decided, and two reports that an experiment waits.
APPROVAL_LOOK_SECONDS, APPROVAL_REPORT_SECONDS = 0.5, 10.0
# A larger log of earlier runs of an experiment is set aside when it is run again.
MAX_LOG_BYTES = 10 << 20

# Lines of faulthandler, which have no value.
_FAULT = re.compile(
    r'  File "(?P<file>[^"]*)"(?P<where>, line \d+ in [\w<>.]+)'
    r"|Timeout \([\d:.]+\)!|(Current thread|Thread) 0x[0-9a-f]+ \(most recent call first\):"
    r"|Fatal Python error: [A-Z][A-Za-z ]+"
)


class RunningExperiment:
    """One experiment on this node, watched by a thread of its own from the download to the end."""

    def __init__(self, envoy: "Envoy", experiment: str) -> None:
        self.experiment = experiment
        self._envoy = envoy
        # What waits for an approval needs none. Otherwise it loads its libraries while the archive is downloaded.
        self._worker = envoy.take_worker() if envoy.settings.approval == "any" else None
        self._worker_lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Tell whether the worker has ended, and the director knows why."""
        return not self._thread.is_alive()

    def stop(self, grace: float) -> None:
        """End the experiment: its worker has `grace` seconds to hear of that and to end by itself."""
        with self._worker_lock:
            self._stopping.set()
            worker = self._worker
        if worker is not None:
            try:
                worker.wait(grace)
            except subprocess.TimeoutExpired:
                end_worker(worker)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            reason = self._attempt()
            reported = reason.partition("\n")[0][:MAX_RECORDED_CHARACTERS]
            self._envoy.record.note("ended", experiment=self.experiment, reason=reported)
            if reason and not self._stopping.is_set():
                self._envoy.report_failure(self.experiment, reason)
        except ConnectionRefusedByDirectorError as error:
            # It ended before this envoy came to it.
            logger.warning("experiment '%s': %s", self.experiment, error)
            self._end_worker()
        finally:
            self._envoy.forget(self.experiment)
            self._envoy.exchange_heads()

    def _end_worker(self) -> None:
        if self._worker is not None:
            end_worker(self._worker)

    def _attempt(self) -> str:
        """Download and run the experiment. Returns why it failed, or nothing."""
        try:
            workspace = self._envoy.download(self.experiment)
            approves = self._envoy.settings.approval != "any"
            bundle = read_bundle(workspace, shown=approves)
            check_name(bundle, self.experiment)
            reason = self._envoy.judge(bundle) or (self._await_approval(bundle, workspace) if approves else "")
            if reason or self._stopping.is_set():
                self._end_worker()
                return reason
            with self._worker_lock:
                if self._worker is None:
                    if self._stopping.is_set():
                        return ""
                    self._worker = self._envoy.take_worker()
            return self._work(bundle, workspace, self._worker)
        except (ArchiveError, ApprovalError, SettingsError) as error:
            reason = str(error)
        except OSError as error:
            tells = self._envoy.settings.policy.tracebacks == "values"
            reason = f"the envoy cannot read or write: {error if tells else plain_reason(error)}"
        self._end_worker()
        return reason

    def _await_approval(self, bundle: Bundle, workspace: Path) -> str:
        """Wait until the site has decided of the experiment. Returns why it must not run, or nothing."""
        prepare_workspace(workspace)
        desk, reported = self._envoy.desk, float("-inf")
        while not self._stopping.is_set():
            verdict = desk.judge(bundle)
            if not verdict.waits:
                self._envoy.report_approval(self.experiment, waits=False)
                return verdict.refused
            if reported < 0:
                user, key = desk.author_of(bundle)
                desk.approvals.ask(bundle, workspace, user, bool(key))
                logger.info("experiment '%s' waits for approval: openfl-audio review shows it", self.experiment)
            if time.monotonic() - reported >= APPROVAL_REPORT_SECONDS:
                # Again and again, as a director that was started anew does not know.
                self._envoy.report_approval(self.experiment, waits=True)
                reported = time.monotonic()
            self._stopping.wait(APPROVAL_LOOK_SECONDS)
        return ""

    def _work(self, bundle: Bundle, workspace: Path, worker: Worker) -> str:
        """Let the worker run the experiment. Returns why it failed, or nothing."""
        log = workspace.with_name("worker.log")
        rotate(log)
        failure = workspace.with_name("failure.txt")
        failure.unlink(missing_ok=True)
        written = log.stat().st_size if log.exists() else 0
        logger.info("experiment '%s' starts, its output goes to %s", self.experiment, log)
        job = Job(
            experiment=self.experiment,
            workspace=str(workspace),
            log=str(log),
            failure=str(failure),
            shown=self._envoy.settings.approval != "any",
        )
        progress, theirs = make_pair()
        self._relay(bundle, worker, progress)
        # Of a worker that has ended already, the exit code tells.
        with contextlib.suppress(OSError), theirs:
            worker.link.send(job.model_dump(), file=theirs.fileno())
        excess = wait_within(worker, self._envoy.settings.memory_limit_gb * 1e9)
        end_worker(worker)  # and whatever it started
        progress.close()
        code = worker.returncode
        if code == 0:
            logger.info("experiment '%s' is done", self.experiment)
            return ""
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the experiment's process ended ({excess or ended})\n{self._told(log, written, failure)}"

    def _relay(self, bundle: Bundle, worker: Worker, progress: Link) -> None:
        """Do for the worker what it asks for: of rounds on its link, and of its progress on another one."""

        def has_ended() -> bool:
            return worker.poll() is not None or self._stopping.is_set()

        envoy = self._envoy
        recording = Recording(envoy.record, self.experiment, has_ended, envoy.exchange_heads)
        client = RoundsClient(envoy.channel, envoy.name, bundle, recording.note, has_ended, envoy.settings)
        for link in (worker.link, progress):
            Relay(link, client).start()

    def _told(self, log: Path, written: int, failure: Path) -> str:
        """Return what is told of why a worker has ended: the end of its output, or of that no more than code."""
        if self._envoy.settings.policy.tracebacks == "values":
            return end_of(log, written)
        told = failure.read_text(encoding="utf-8") if failure.exists() else lines_of_code(end_of(log, written))
        return told[-REPORTED_CHARACTERS:]


def rotate(log: Path) -> None:
    """Let a log that has grown large begin anew; one before it is kept, with ".1" after its name."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def end_of(log: Path, start: int) -> str:
    """Return what a notebook is shown of a worker's output, of which this experiment's begins at byte `start`."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines() if log.exists() else []
    # A crash lists all compiled modules in one line of thousands of characters.
    return "\n".join(line for line in lines if not line.startswith("Extension modules:"))[-REPORTED_CHARACTERS:]


def lines_of_code(output: str) -> str:
    """Return of the output of a worker that was killed, or hung, what faulthandler says of its code."""
    found = filter(None, map(_FAULT.fullmatch, output.splitlines()))
    return "\n".join(
        f'  File "{module_path(each["file"])}"{each["where"]}' if each["file"] else each[0] for each in found
    )
