"""The envoy: announces its shard, waits for experiments, and runs each in a process of its own. Imports no torch."""

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import grpc
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from openfl.protocols import director_pb2, director_pb2_grpc

from openfl_audio.address import is_this_machine, join_address, route_to
from openfl_audio.envoy.approval import Desk
from openfl_audio.envoy.budget import SiteBudget
from openfl_audio.envoy.channel import RenewedChannel, fault_of
from openfl_audio.envoy.downloads import remove_download, remove_outdated
from openfl_audio.envoy.installed import why_not_installed
from openfl_audio.envoy.policy import SentToday, shard_of
from openfl_audio.envoy.rooms import WORKSPACE
from openfl_audio.envoy.rounds_client import REFUSALS, wait_to_repeat
from openfl_audio.envoy.running_experiment import RunningExperiment
from openfl_audio.envoy.settings import SENT_FILE, EnvoyFile, connect, mark_folder, open_record
from openfl_audio.envoy.shortage import RETRY_SECONDS
from openfl_audio.envoy.workers import Workers
from openfl_audio.errors import (
    ArchiveError,
    ConnectionRefusedByDirectorError,
    OpenFLAudioError,
    SettingsError,
)
from openfl_audio.node.compatibility import describe_environment
from openfl_audio.protocol.archive import unpack_archive
from openfl_audio.protocol.bundle import Bundle
from openfl_audio.protocol.certificates import DIRECTOR
from openfl_audio.protocol.codec import decode_answer, encode
from openfl_audio.protocol.heads import HeadExchange
from openfl_audio.protocol.messages import ApprovalReport, AttendRequest, HeadAnswer, HeadRequest, Order
from openfl_audio.protocol.plan import ARCHIVE, NAME
from openfl_audio.protocol.privacy import refuse_test_noise
from openfl_audio.protocol.record import sha256_of_file
from openfl_audio.protocol.shard_sizes import sizes_of
from openfl_audio.protocol.wire import RoundsStub, certificate_fault, explain_unreachable, wait_for_connection

logger = logging.getLogger("envoy")

# A worker between two tasks hears of the end as soon as the envoy does; one in the middle of a task does not.
GRACE_SECONDS = 2.0
REPORT_SECONDS = 10.0
MAX_ARCHIVE_BYTES = 1 << 30
# An exchange of heads that takes longer is given up.
HEADS_SECONDS = 10.0
# Between two looks at the certificate of a director that is out of reach: each is a connection of its own.
PROBE_PAUSE_SECONDS = 60.0

Answer = TypeVar("Answer")


class Envoy:
    """One node of a federation; `config` is the path of the file that its settings were read from.

    Raises PrivacyError if noise repeats here, and the director is on another machine.
    """

    def __init__(self, name: str, file: EnvoyFile, shard_descriptor: ShardDescriptor, config: Path, tls: bool):
        if not is_this_machine(file.params.director_host):
            refuse_test_noise(f"the director of envoy '{name}' is at {file.params.director_host}")
        self.name = name
        self.file = file
        self.settings = settings = file.params
        self.shard_descriptor = shard_descriptor
        self.config = config
        self.tls = tls
        self._instance = uuid.uuid4().hex
        self._address = join_address(settings.director_host, settings.director_port)
        self.channel = connect(settings, name, tls, instance=self._instance, corpus=corpus_of(shard_descriptor))
        self._stub = director_pb2_grpc.DirectorStub(self.channel)
        self._rounds = RoundsStub(self.channel)
        self._sizes = sizes_of(shard_descriptor)
        self._running: RunningExperiment | None = None
        self.record = open_record(settings, name)
        self.heads = HeadExchange(self.record)
        self._next_probe = 0.0
        self._fault = ""
        root = self.channel.root if isinstance(self.channel, RenewedChannel) else None
        self.desk = Desk(name, settings, root)
        self.budget = SiteBudget(settings.privacy, name, self._folder) if settings.privacy else None
        self.workers = Workers(name, file, config, shard_descriptor)

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
            if self._running:
                self._running.stop(grace=0)
            self.workers.close()
            with contextlib.suppress(OSError):
                self.record.append("envoy_ended")

    def _attend(self) -> None:
        """Do what the director orders, as long as the connection holds. Raises grpc.RpcError when it breaks."""
        request = encode(AttendRequest(envoy=self.name, instance=self._instance))
        for answer in self._rounds.attend(request):
            order = decode_answer(answer, Order)
            self._switch_to(order.experiment)
            if not order.prestart:
                self.workers.end_spare()
            elif self._running is None:
                self.workers.prepare()

    def _switch_to(self, experiment: str) -> None:
        """Run `experiment`, or none if it is "". A worker that runs it already is not restarted."""
        if self._running and (self._running.experiment != experiment or self._running.is_over):
            self._running.stop(grace=GRACE_SECONDS)
            self._running = None
        if experiment and self._running is None:
            self._running = RunningExperiment(self, experiment)

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
        mark_folder(self._folder)
        self.workers.tidy_up()
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
        if self.budget is not None:
            spent = [*self.budget.judge(bundle.plan)]
            if spent and not reasons:
                return "; ".join(spent)
            reasons += spent
        if not reasons:
            return ""
        self.record.append(
            "refused by policy", experiment=bundle.plan.name, sha256=bundle.sha256, user=user, reasons=reasons
        )
        return f"the policy of envoy '{self.name}' refuses the experiment: {'; '.join(reasons)}"

    def judge_code(self, bundle: Bundle, workspace: Path) -> str:
        """Return why code must not run where there is a budget, which DP-SGD inside of it has to honour, or nothing."""
        if self.budget is None or self.desk.approved_by_hash(bundle):
            return ""
        if not (why := why_not_installed(workspace)):
            return ""
        return (
            f"envoy '{self.name}' has a budget of privacy, and runs installed workloads and code that its site has "
            f"approved by hash: {why}"
        )

    def report_approval(self, experiment: str, waits: bool) -> None:
        """Tell the director whether an experiment waits for the approval of this site.

        Raises ConnectionRefusedByDirectorError if the experiment has ended.
        """
        request = encode(ApprovalReport(experiment=experiment, envoy=self.name, waits=waits))
        self.call(lambda: self._rounds.report_approval(request, timeout=REPORT_SECONDS))


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
