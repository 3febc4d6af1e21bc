"""One experiment on this node, from the download to the end."""

import contextlib
import logging
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from openfl_audio.envoy.approval import check_name, prepare_workspace
from openfl_audio.envoy.job import Job
from openfl_audio.envoy.limits import RoundClock, Watch
from openfl_audio.envoy.link import Link, make_pair
from openfl_audio.envoy.policy import module_path, plain_reason
from openfl_audio.envoy.recording import Recording
from openfl_audio.envoy.relay import Relay
from openfl_audio.envoy.rooms import enter
from openfl_audio.envoy.rounds_client import RoundsClient
from openfl_audio.envoy.sandbox import INSIDE
from openfl_audio.envoy.worker_process import STOP_SECONDS, Worker, wait_within
from openfl_audio.errors import (
    ApprovalError,
    ArchiveError,
    ConnectionRefusedByDirectorError,
    RecordError,
    SettingsError,
)
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
        self._worker = envoy.workers.take() if envoy.settings.approval == "any" else None
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
                worker.end()
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
            self._worker.end()

    def _attempt(self) -> str:
        """Download and run the experiment. Returns why it failed, or nothing."""
        try:
            workspace = self._envoy.download(self.experiment)
            settings = self._envoy.settings
            approves = settings.approval != "any"
            bundle = read_bundle(workspace, shown=settings.shows_code)
            check_name(bundle, self.experiment)
            if settings.shows_code:
                prepare_workspace(workspace)
            reason = self._envoy.judge(bundle) or (self._await_approval(bundle, workspace) if approves else "")
            reason = reason or ("" if self._stopping.is_set() else self._envoy.judge_code(bundle, workspace))
            if reason or self._stopping.is_set():
                self._end_worker()
                return reason
            with self._worker_lock:
                if self._worker is None:
                    if self._stopping.is_set():
                        return ""
                    self._worker = self._envoy.workers.take()
            return self._work(bundle, workspace, self._worker)
        except (ArchiveError, ApprovalError, RecordError, SettingsError) as error:
            reason = str(error)
        except OSError as error:
            tells = self._envoy.settings.policy.tracebacks == "values"
            reason = f"the envoy cannot read or write: {error if tells else plain_reason(error)}"
        self._end_worker()
        return reason

    def _await_approval(self, bundle: Bundle, workspace: Path) -> str:
        """Wait until the site has decided of the experiment. Returns why it must not run, or nothing."""
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
        written = log.stat().st_size if log.exists() else 0
        envoy, clock = self._envoy, RoundClock()
        envoy.workers.open_way(workspace.parent)
        if fault := worker.wait_until_ready():
            worker.end()
            return f"the experiment's process does not start: {fault}"
        room = enter(worker.room, workspace.parent, envoy.workers.owner)
        logger.info("experiment '%s' starts, its output goes to %s", self.experiment, log)
        progress, theirs = make_pair()
        client = self._relay(bundle, worker, progress, clock)
        # Files that the worker may write to, and cannot replace by links to others. Nothing is read by a name that it
        # could have given to something else.
        with log.open("ab+") as output, tempfile.TemporaryFile() as failure:
            # Of a worker that has ended already, the exit code tells.
            with contextlib.suppress(OSError), theirs:
                job = self._job(INSIDE if worker.is_confined else room)
                worker.link.send(job.model_dump(), files=[theirs.fileno(), output.fileno(), failure.fileno()])
            excess = wait_within(worker, Watch(worker.pid, worker.group, envoy.settings, clock))
            ended = excess or worker.ended_by()
            worker.end()  # and whatever it started
            progress.close()
            client.close()
            if not ended:
                logger.info("experiment '%s' is done", self.experiment)
                return ""
            if client.refusal:
                return client.refusal
            return f"the experiment's process ended ({ended})\n{self._told(log, written, failure)}"

    def _job(self, room: Path) -> Job:
        settings = self._envoy.settings
        return Job(
            experiment=self.experiment,
            envoy=self._envoy.name,
            room=str(room),
            shard_descriptor=self._envoy.file.shard_descriptor,
            folder=str(self._envoy.config.parent),
            shown=settings.shows_code,
            reports=settings.reports,
            task_timeout_seconds=settings.task_timeout_seconds,
        )

    def _relay(self, bundle: Bundle, worker: Worker, progress: Link, clock: RoundClock) -> RoundsClient:
        """Do for the worker what it asks for: of rounds on its link, and of its progress on another one."""

        def has_ended() -> bool:
            return worker.poll() is not None or self._stopping.is_set()

        envoy = self._envoy
        recording = Recording(envoy.record, self.experiment, has_ended, envoy.exchange_heads)
        client = RoundsClient(
            envoy.channel, envoy.name, bundle, recording.note, has_ended, envoy.settings, envoy.record, envoy.budget
        )
        for link in (worker.link, progress):
            Relay(link, client, clock).start()
        return client

    def _told(self, log: Path, written: int, failure: IO[bytes]) -> str:
        """Return what is told of why a worker has ended: the end of its output, or of that no more than code."""
        if self._envoy.settings.policy.tracebacks == "values":
            return end_of(log, written)
        size = failure.seek(0, os.SEEK_END)
        failure.seek(max(0, size - REPORTED_CHARACTERS))
        return failure.read().decode(errors="replace") if size else lines_of_code(end_of(log, written))


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
