"""The envoy: announces its shard, waits for experiments, and runs each in a process of its own. Imports no torch."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Container, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import grpc
import psutil
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from openfl.protocols import director_pb2, director_pb2_grpc

from openfl_audio.address import join_address, route_to
from openfl_audio.config import Retention
from openfl_audio.envoy.approval import Desk, check_name, prepare_workspace
from openfl_audio.envoy.channel import RenewedChannel, fault_of
from openfl_audio.envoy.job import Job
from openfl_audio.envoy.keeper import STOP_SECONDS as WORKER_STOP_SECONDS
from openfl_audio.envoy.link import Link, make_pair
from openfl_audio.envoy.policy import SentToday, module_path, plain_reason, shard_of
from openfl_audio.envoy.recording import Recording
from openfl_audio.envoy.relay import Relay
from openfl_audio.envoy.rounds_client import REFUSALS, RETRY_SECONDS, RoundsClient, wait_to_repeat
from openfl_audio.envoy.settings import SENT_FILE, EnvoySettings, connect, open_record
from openfl_audio.errors import (
    ApprovalError,
    ArchiveError,
    ConnectionRefusedByDirectorError,
    OpenFLAudioError,
    SettingsError,
)
from openfl_audio.node.compatibility import describe_environment
from openfl_audio.protocol.archive import unpack_archive
from openfl_audio.protocol.bundle import Bundle, read_bundle
from openfl_audio.protocol.certificates import DIRECTOR
from openfl_audio.protocol.heads import HeadExchange
from openfl_audio.protocol.messages import (
    ApprovalReport,
    AttendRequest,
    HeadAnswer,
    HeadRequest,
    Order,
    decode_answer,
    encode,
)
from openfl_audio.protocol.plan import ARCHIVE, NAME
from openfl_audio.protocol.record import sha256_of_file
from openfl_audio.protocol.shard_sizes import sizes_of
from openfl_audio.protocol.wire import RoundsStub, certificate_fault, explain_unreachable, wait_for_connection

logger = logging.getLogger("envoy")

# How much of a failed worker's output goes to the notebook: a traceback, not a novel.
REPORTED_CHARACTERS = 6000
# Of it in the record: a sentence.
MAX_RECORDED_CHARACTERS = 500
# A worker is killed when it takes longer than its keeper allows.
STOP_SECONDS = 2 * WORKER_STOP_SECONDS
# A worker between two tasks hears of the end as soon as the envoy does; one in the middle of a task does not.
GRACE_SECONDS = 2.0
# Between two looks at how much memory a worker holds.
WATCH_SECONDS = 0.2
# Looking takes at most a twentieth of the time, also where it takes long.
WATCH_PAUSES = 19
# Chunks of models, up to a megabyte each, come from and go back to the heap. By glibc's defaults it would give each
# back to the system and ask for it again, which costs more time than filling it.
REUSED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
# Between two looks at what the site has decided, and two reports that an experiment waits.
APPROVAL_LOOK_SECONDS, APPROVAL_REPORT_SECONDS = 0.5, 10.0
REPORT_SECONDS = 10.0
MAX_ARCHIVE_BYTES = 1 << 30
# An exchange of heads that takes longer is given up.
HEADS_SECONDS = 10.0
# Between two looks at the certificate of a director that is out of reach: each is a connection of its own.
PROBE_PAUSE_SECONDS = 60.0
# A larger log of earlier runs of an experiment is set aside when it is run again.
MAX_LOG_BYTES = 10 << 20
# Where an experiment's archive is unpacked, in its folder.
WORKSPACE = "workspace"

# Lines of faulthandler, which have no value.
_FAULT = re.compile(
    r'  File "(?P<file>[^"]*)"(?P<where>, line \d+ in [\w<>.]+)'
    r"|Timeout \([\d:.]+\)!|(Current thread|Thread) 0x[0-9a-f]+ \(most recent call first\):"
    r"|Fatal Python error: [A-Z][A-Za-z ]+"
)

Answer = TypeVar("Answer")


class Worker(subprocess.Popen):
    """A worker with its keeper.

    Attributes:
        link: the envoy's end of the socket that is the worker's standard input.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.link, theirs = make_pair()
        with theirs:
            super().__init__(command, stdin=theirs.fileno(), start_new_session=True, env=REUSED_MEMORY | os.environ)


class Envoy:
    """One node of a federation; `config` is the file of its settings, which its workers read as well.

    `changes` are "key=value" in place of what the file says, as they are in `settings` already.
    """

    def __init__(
        self,
        name: str,
        settings: EnvoySettings,
        shard_descriptor: ShardDescriptor,
        config: Path,
        tls: bool,
        changes: Sequence[str] = (),
    ):
        self.name = name
        self.settings = settings
        self.shard_descriptor = shard_descriptor
        self.config = config
        self.tls = tls
        self._changes = changes
        self._instance = uuid.uuid4().hex
        self._address = join_address(settings.director_host, settings.director_port)
        self.channel = connect(settings, name, tls, instance=self._instance, corpus=corpus_of(shard_descriptor))
        self._stub = director_pb2_grpc.DirectorStub(self.channel)
        self._rounds = RoundsStub(self.channel)
        self._sizes = sizes_of(shard_descriptor)
        self._running: RunningExperiment | None = None
        self._spare: Worker | None = None
        self.record = open_record(settings, name)
        self.heads = HeadExchange(self.record)
        self._next_probe = 0.0
        self._fault = ""
        # An experiment takes it from a thread of its own.
        self._spare_lock = threading.Lock()
        root = self.channel.root if isinstance(self.channel, RenewedChannel) else None
        self.desk = Desk(name, settings, root)

    def run(self) -> None:
        """Register and serve experiments until a signal ends the process.

        Raises ConnectionRefusedByDirectorError if the director cannot be reached within `connect_timeout` or refuses.
        """
        self._register(deadline=time.monotonic() + self.settings.connect_timeout)
        # Now it is known that no other envoy of this name is at work here.
        self._tidy_up()
        about = self.settings.model_dump(mode="json", exclude={"certificates", "work_dir"})
        self.record.append("envoy_started", version=version("openfl-audio"), tls=self.tls, settings=about)
        try:
            while True:
                self.exchange_heads()
                try:
                    self._attend()
                except grpc.RpcError as error:
                    logger.warning("lost the director: %s", error.details())
                wait_for_connection(self.channel, RETRY_SECONDS)
                self._register()
        finally:
            self._end_spare()
            if self._running:
                self._running.stop(grace=0)
            with contextlib.suppress(OSError):
                self.record.append("envoy_ended")

    def _attend(self) -> None:
        """Do what the director orders, as long as the connection holds. Raises grpc.RpcError when it breaks."""
        request = encode(AttendRequest(envoy=self.name, instance=self._instance))
        for answer in self._rounds.attend(request):
            order = decode_answer(answer, Order)
            self._switch_to(order.experiment)
            if not order.prestart:
                self._end_spare()
            elif self._running is None and self._spare is None:
                self._spare = self._start_worker()

    def _switch_to(self, experiment: str) -> None:
        """Run `experiment`, or none if it is "". A worker that runs it already is not restarted."""
        if self._running and (self._running.experiment != experiment or self._running.is_over):
            self._running.stop(grace=GRACE_SECONDS)
            self._running = None
        if experiment and self._running is None:
            self._running = RunningExperiment(self, experiment)

    def take_worker(self) -> Worker:
        """Return a worker: the spare one, or a new one."""
        with self._spare_lock:
            worker, self._spare = self._spare, None
        return self._start_worker() if worker is None or worker.poll() is not None else worker

    def _register(self, deadline: float = float("inf")) -> None:
        info = director_pb2.ShardInfo(
            shard_description=self.settings.policy.describe(self.shard_descriptor.dataset_description),
            sample_shape=shape_of(self.shard_descriptor, "sample_shape"),
            target_shape=shape_of(self.shard_descriptor, "target_shape"),
        )
        info.node_info.name = self.name
        request = director_pb2.UpdateShardInfoRequest(shard_info=info)
        about = (
            ("sizes", json.dumps(self.settings.policy.sizes(self._sizes))),
            ("versions", json.dumps(describe_environment())),
        )
        self.call(lambda: self._stub.UpdateShardInfo(request, timeout=10, metadata=about), deadline)
        logger.info("envoy '%s' is registered at %s: %s", self.name, self._address, info.shard_description)

    def call(self, call: Callable[[], Answer], deadline: float = float("inf")) -> Answer:
        """Return the answer to `call`, repeated while the director is out of reach or has an internal error."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() in REFUSALS:
                    raise ConnectionRefusedByDirectorError(
                        f"the director at {self._address} refused: {error.details()}"
                    ) from error
                root = self.channel.root if isinstance(self.channel, RenewedChannel) else None
                # Only an envoy that starts has somebody who looks. Later, a certificate may be mended at any time.
                starts = deadline < float("inf")
                fault = self._directors_fault(root, at_once=starts)
                if time.monotonic() > deadline or (fault and starts):
                    raise ConnectionRefusedByDirectorError(
                        explain_unreachable(self._address, error.details(), root, "envoy")
                    ) from error
                reason = fault or fault_of(self.channel) or error.details()
                logger.info("waiting for the director at %s: %s", route_to(self._address), reason)
                wait_to_repeat(self.channel)

    def _directors_fault(self, root: bytes | None, at_once: bool) -> str:
        """Return what is wrong with the director's certificate, as it was found in the last minute, or now."""
        now = time.monotonic()
        if at_once or now >= self._next_probe:
            self._next_probe = now + PROBE_PAUSE_SECONDS
            self._fault = certificate_fault(self._address, root)
        return self._fault

    def exchange_heads(self) -> None:
        """Give the director the head of this record for that of its own; without an answer, at the next occasion."""
        own = self.channel.credentials if isinstance(self.channel, RenewedChannel) else None
        try:
            self.record.sync()
            head = self.heads.own(own).model_copy(update={"certificate": ""})  # TLS shows it
            request = encode(HeadRequest(envoy=self.name, head=head))
            theirs = decode_answer(self._rounds.exchange_heads(request, timeout=HEADS_SECONDS), HeadAnswer).head
            self.heads.take(f"{DIRECTOR} '{DIRECTOR}'", theirs, theirs.certificate, own.root if own else None)
        except grpc.RpcError as error:
            logger.info("heads of records are exchanged later: %s", error.details())
        except (OSError, OpenFLAudioError) as error:
            logger.error("heads of records are not exchanged: %s", error)

    def download(self, experiment: str) -> Path:
        """Download the experiment's archive, and return the folder it was unpacked into. Raises ArchiveError."""
        if not NAME.fullmatch(experiment):
            raise ArchiveError(f"the director sent the experiment name {experiment[:80]!r}")
        folder = self._folder / experiment
        remove_download(folder)
        workspace, archive = folder / WORKSPACE, folder / ARCHIVE
        workspace.mkdir(parents=True)
        request = director_pb2.GetExperimentDataRequest(experiment_name=experiment, collaborator_name=self.name)
        self.call(lambda: self._save(archive, request))
        self.record.append("downloaded", experiment=experiment, archive_sha256=sha256_of_file(archive))
        unpack_archive(archive, workspace)
        archive.unlink()
        return workspace

    def forget(self, experiment: str) -> None:
        """Remove what was downloaded for an experiment; its log and its clients' state stay."""
        if NAME.fullmatch(experiment):
            remove_download(self._folder / experiment)
            self.desk.approvals.forget_waiting(experiment)
        running = self._running.experiment if self._running else ""
        remove_outdated(self._folder, self.settings.retention, {experiment, running})

    def _tidy_up(self) -> None:
        """Remove what an envoy that was killed had downloaded, and keep the rest from other users of the machine."""
        if self._folder.exists():
            self._folder.chmod(0o700)
            for folder in filter(Path.is_dir, self._folder.iterdir()):
                remove_download(folder)
            for waiting in self.desk.approvals.waiting():
                self.desk.approvals.forget_waiting(waiting.name)
            remove_outdated(self._folder, self.settings.retention, set())

    @property
    def _folder(self) -> Path:
        return self.settings.work_dir / self.name

    def _save(self, archive: Path, request: director_pb2.GetExperimentDataRequest) -> None:
        with archive.open("wb") as file:
            for chunk in self._stub.GetExperimentData(request):
                file.write(chunk.npbytes)
                if file.tell() > MAX_ARCHIVE_BYTES:
                    raise ArchiveError(f"the experiment's archive is larger than {MAX_ARCHIVE_BYTES} bytes")

    def report_failure(self, experiment: str, reason: str) -> None:
        """Tell the director that an experiment failed here, and why."""
        logger.error("experiment '%s' failed here: %s", experiment, reason)
        request = director_pb2.SetExperimentFailedRequest(
            experiment_name=experiment, collaborator_name=self.name, error_code=1, error_description=reason
        )
        self.call(lambda: self._stub.SetExperimentFailed(request))

    def judge(self, bundle: Bundle) -> str:
        """Return why the site's policy refuses an experiment, or nothing."""
        user, key = self.desk.author_of(bundle)
        shard = shard_of(self.shard_descriptor, self._sizes)
        sent = SentToday(self._folder / SENT_FILE).read()
        reasons = [*self.settings.policy.judge(bundle, user, bool(key) or not self.tls, shard, sent)]
        if not reasons:
            return ""
        self.record.append(
            "refused by policy", experiment=bundle.plan.name, sha256=bundle.sha256, user=user, reasons=reasons
        )
        return f"the policy of envoy '{self.name}' refuses the experiment: {'; '.join(reasons)}"

    def report_approval(self, experiment: str, waits: bool) -> None:
        """Tell the director whether an experiment waits for the approval of this site.

        Raises ConnectionRefusedByDirectorError if the experiment has ended.
        """
        request = encode(ApprovalReport(experiment=experiment, envoy=self.name, waits=waits))
        self.call(lambda: self._rounds.report_approval(request, timeout=REPORT_SECONDS))

    def _start_worker(self) -> Worker:
        """Start a worker, with its keeper: it loads its libraries, and then waits for a job."""
        keeper = [sys.executable, "-m", "openfl_audio.envoy.keeper"]
        command = [*keeper, sys.executable, "-m", "openfl_audio.envoy.worker", "-n", self.name, "-c", str(self.config)]
        command += [word for change in self._changes for word in ("--set", change)]
        # A session of its own: Ctrl-C reaches the envoy, which stops the worker. The keeper ends when its standard
        # input does, so nothing outlives the envoy.
        return Worker(command)

    def _end_spare(self) -> None:
        with self._spare_lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            end_worker(spare)


class RunningExperiment:
    """One experiment on this node, watched by a thread of its own from the download to the end."""

    def __init__(self, envoy: Envoy, experiment: str) -> None:
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
        excess = self._wait(worker)
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

    def _wait(self, worker: Worker) -> str:
        """Wait until the worker has ended. Returns "", or why it was killed: it held too much memory."""
        limit = self._envoy.settings.memory_limit_gb * 1e9
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


def remove_download(folder: Path) -> None:
    """Remove an experiment's code and pickles from its folder: they are downloaded whenever it is run."""
    shutil.rmtree(folder / WORKSPACE, ignore_errors=True)
    (folder / ARCHIVE).unlink(missing_ok=True)


def remove_outdated(folder: Path, retention: Retention, kept: Container[str]) -> None:
    """Remove logs and state of experiments that are not to be kept, save for those of `kept`."""
    folders = [path for path in folder.glob("[!.]*") if path.is_dir() and path.name not in kept]
    ended = {path.name: path.stat().st_mtime for path in folders}
    for name in retention.outdated(ended, time.time()):
        logger.info("experiment '%s' is not kept any longer", name)
        shutil.rmtree(folder / name, ignore_errors=True)


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


def corpus_of(shard_descriptor: ShardDescriptor) -> str:
    """Return the corpus that a shard descriptor says it serves, or the name of its class."""
    return getattr(shard_descriptor, "corpus", type(shard_descriptor).__name__)


def shape_of(shard_descriptor: ShardDescriptor, name: str) -> list[str]:
    """Return `sample_shape` or `target_shape` of a shard descriptor as texts, -1 where it has none.

    Raises SettingsError for what is no shape.
    """
    try:
        shape = getattr(shard_descriptor, name)
    except (AttributeError, NotImplementedError):  # OpenFL's own class has one that is not implemented
        return ["-1"]
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int | str) for size in shape):
        raise SettingsError(f"{name} is {shape!r}: it should be a list of sizes, such as [16000]")
    return [str(size) for size in shape]
