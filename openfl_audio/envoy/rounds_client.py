"""Connection of an envoy to an experiment on the director, in which its worker takes part."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

import grpc
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc

from openfl_audio.envoy.budget import SiteBudget
from openfl_audio.envoy.channel import RenewedChannel, fault_of
from openfl_audio.envoy.job import Sending
from openfl_audio.envoy.policy import SentToday
from openfl_audio.envoy.secure_updates import SecureUpdates, Unmaskings
from openfl_audio.envoy.settings import SENT_FILE, EnvoySettings
from openfl_audio.envoy.shortage import RETRY_SECONDS, write_when_possible
from openfl_audio.errors import DirectorRefusedError, EndedError, PolicyError, SecureAggregationError, TensorFormatError
from openfl_audio.privacy.accounting import Release
from openfl_audio.privacy.transcript import CertificateIdentity
from openfl_audio.protocol.bundle import Bundle, describe_model
from openfl_audio.protocol.codec import decode_answer, encode, validate
from openfl_audio.protocol.messages import (
    GlobalModel,
    ModelRequest,
    ProgressReport,
    Reported,
    SecureAnswer,
    SecureRequest,
    TaskResult,
    UpdateMessage,
)
from openfl_audio.protocol.record import Record, sha256_of_names
from openfl_audio.protocol.tensors import Header, Receiver, Tensors, buffer_chunks, tensors_in
from openfl_audio.protocol.wire import RoundsStub, send_chunks, wait_for_connection

logger = logging.getLogger(__name__)

# A report of progress that takes longer is given up.
TIMEOUT_SECONDS = 5.0
# A long poll of a secure round takes less.
SECURE_SECONDS = 60.0
# An update has the tensors of the model, and the optimizer's, of any type.
LARGEST_TIMES = 8
# Codes of answers that would be the same again. Every other code stands for a connection that broke somewhere.
REFUSALS = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
Answer = TypeVar("Answer")


def wait_to_repeat(channel: grpc.Channel) -> None:
    """Wait before a call that failed, and was not refused, is repeated."""
    began = time.monotonic()
    wait_for_connection(channel, RETRY_SECONDS)
    # A director that can be reached lacks something, such as room on its disk: back off before retrying.
    time.sleep(max(0.0, began + RETRY_SECONDS - time.monotonic()))


def check_approved(bundle: Bundle, round_number: int, tensors: Tensors) -> None:
    """Raise DirectorRefusedError if a director goes beyond what the site has approved.

    That is more rounds than there, or another initial model.
    """
    if round_number > bundle.plan.last_round:
        raise DirectorRefusedError(
            f"the director asks for round {round_number}, and the site has approved {bundle.plan.rounds} rounds"
        )
    if round_number == 0 and describe_model(tensors, "float32") != bundle.model:
        raise DirectorRefusedError("the director's initial model is not the one that the site has approved")


@lru_cache(maxsize=4)
def _digest(names: tuple[str, ...]) -> str:
    return sha256_of_names(names)


class RoundsClient:
    """Client of one experiment on the director, for the worker of an envoy.

    Calls are retried while the director is out of reach: it counts an update once however often it arrives.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        envoy: str,
        bundle: Bundle,
        announce: Callable[[Sending], None],
        has_ended: Callable[[], bool],
        settings: EnvoySettings,
        record: Record,
        budget: SiteBudget | None = None,
    ) -> None:
        """Take part in the experiment of `bundle` as `envoy`, whose `record` says what it has unmasked.

        `announce` is called before an update is sent, and `has_ended` tells whether the worker has. A `budget` pays for
        updates; `refusal` then says, in a sentence for others, why the experiment cannot go on here.
        """
        self._record, self._budget, self.refusal = record, budget, ""
        self._envoy, self._bundle, self._settings = envoy, bundle, settings
        self._announce, self._has_ended = announce, has_ended
        self._sent_today = SentToday(settings.work_dir / envoy / SENT_FILE)
        self._channel = channel
        self._aggregator = aggregator_pb2_grpc.AggregatorStub(channel)
        self._rounds = RoundsStub(channel)
        self._header = aggregator_pb2.MessageHeader(sender=envoy, federation_uuid=bundle.plan.federation_uuid)
        self._secure = self._make_secure(Unmaskings(record)) if bundle.plan.secure_aggregation else None

    def get_tasks(self) -> aggregator_pb2.GetTasksResponse:
        """Wait for tasks, for the length of a long poll at most."""
        request = aggregator_pb2.GetTasksRequest(header=self._header)
        answer = self._retry(lambda: self._aggregator.GetTasks(request))
        if self._budget is not None:
            with self._refusing():
                self._budget.refuse_if_spent(self._bundle.plan, [task.task_type for task in answer.tasks])
        return answer

    def get_model(self, allocate: Callable[[int], Any]) -> Header:
        """Receive the global model into the memory that `allocate` returns, and return its header.

        Raises DirectorRefusedError for a model that the site has not approved.
        """
        request = encode(ModelRequest(experiment=self._bundle.plan.name, envoy=self._envoy))
        receiver = Receiver(allocate)
        header, buffer = self._retry(lambda: receiver.receive_data(self._rounds.get_model(request)))
        told = validate(header.metadata, GlobalModel)
        if self._settings.approval != "any":
            check_approved(self._bundle, told.round, tensors_in(buffer, header))
        if self._secure:
            self._secure.keep_model(tensors_in(buffer, header))
        return header

    def close(self) -> None:
        """Free what is kept from round to round; an update is refused from now on."""
        if self._secure:
            self._secure.free_memory()

    def bounded(self, n_bytes: int) -> int:
        """Return the size of an update. Raises PolicyError for one that is larger than the model could be."""
        if n_bytes > LARGEST_TIMES * self._bundle.model.n_bytes:
            raise PolicyError(f"an update of {n_bytes} bytes is larger than the model could be")
        return n_bytes

    def send_update(self, round_number: int, results: dict[str, TaskResult], header: Header, buffer: Any) -> None:
        """Send the update of a round, whose tensors lie in `buffer` as `header` says.

        Raises DirectorRefusedError for one that the director does not count, PolicyError for one that the site does not
        let leave, and TensorFormatError for a header of other memory.
        """
        n_bytes, policy = header.data_bytes, self._settings.policy
        if n_bytes > len(buffer):
            raise TensorFormatError(f"an update of {n_bytes} bytes in memory of {len(buffer)}")
        if self._budget is not None:
            results = self._budget.released(self._bundle.plan, results)
        released = policy.check_update(results, n_bytes)
        if self._budget is not None:
            self._pay(self._budget, round_number, results, header, buffer)
        if self._secure:
            self._send_in_secret(self._secure, round_number, released, header, buffer)
            return
        name = self._bundle.plan.name
        update = UpdateMessage(experiment=name, envoy=self._envoy, round=round_number, results=released)
        sent = header.with_metadata(update.model_dump())
        self._upload(round_number, sent, lambda: buffer_chunks(buffer, sent))

    def _pay(
        self, budget: SiteBudget, round_number: int, released: dict[str, TaskResult], header: Header, buffer: Any
    ) -> None:
        """Pay for an update, durably, as soon as the disk takes it. Raises PolicyError where too little is left."""
        plan = self._bundle.plan
        self._charge(budget, round_number, lambda: budget.charge(plan, round_number, header, buffer))
        self._charge(budget, round_number, lambda: budget.charge_metrics(plan, round_number, released))

    def _charge(self, budget: SiteBudget, round_number: int, charge: Callable[[], Release | None]) -> None:
        """Call `charge`, durably, and record what it has paid for."""
        self._stop_if_ended()
        name, paid = self._bundle.plan.name, list[Release | None]()
        with self._refusing():
            write_when_possible(lambda: paid.append(charge()), budget.settings.ledger, name, self._has_ended)
        if not paid:
            raise EndedError("the worker has ended")
        if paid[0] is not None:
            about = {"experiment": name, "round": round_number, **asdict(paid[0])}
            record = self._record
            write_when_possible(lambda: record.write("charged", **about), record.path, name, self._has_ended)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Note why the budget lets nothing more happen."""
        try:
            yield
        except PolicyError as error:
            self.refusal = str(error)
            raise

    def _upload(self, round_number: int, header: Header, chunks: Callable[[], Iterator[bytes]]) -> None:
        """Send what has `header` and `chunks`, the packed header first, once it is written down."""
        self._stop_if_ended()
        n_bytes, names = header.data_bytes, tuple(header.entries)
        limit, sent_today = self._settings.policy.max_day_mb, self._sent_today
        name = self._bundle.plan.name
        write_when_possible(lambda: sent_today.add(n_bytes, limit), sent_today.path, name, self._has_ended)
        self._announce(Sending(round=round_number, bytes=n_bytes, tensors=len(names), names_sha256=_digest(names)))
        self._retry(lambda: send_chunks(self._rounds.send_update, chunks()))

    def _send_in_secret(
        self, secure: SecureUpdates, round_number: int, results: dict[str, TaskResult], header: Header, buffer: Any
    ) -> None:
        """Take part in a secure round with an update. Raises DirectorRefusedError if it is not in the sum."""
        if not secure.send(round_number, results, tensors_in(buffer, header)):
            raise DirectorRefusedError("the update is not in the sum: the round has ended without it")

    def _make_secure(self, unmaskings: Unmaskings) -> SecureUpdates:
        def identity() -> CertificateIdentity:
            if not isinstance(self._channel, RenewedChannel):
                raise SecureAggregationError("secure aggregation needs TLS, by whose certificates keys are signed")
            return CertificateIdentity(self._channel.credentials, self._channel.revoked)

        def ask(request: SecureRequest) -> SecureAnswer:
            answer = self._retry(lambda: self._rounds.secure_stage(encode(request), timeout=SECURE_SECONDS))
            return decode_answer(answer, SecureAnswer)

        def upload(header: Header, chunks: Callable[[], Iterator[bytes]]) -> None:
            number = header.metadata["round"]
            self._upload(number, header, lambda: chain([header.pack()], chunks()))

        approves = self._settings.approval != "any"
        return SecureUpdates(self._envoy, self._bundle, approves, identity, unmaskings, ask, upload)

    def report(self, progress: Mapping[str, Any]) -> float:
        """Report the progress of a task, as far as the site tells it. Returns the seconds until the next report.

        Raises grpc.RpcError, WireError, and ValidationError for what is no report.
        """
        name, reports, policy = self._bundle.plan.name, self._settings.reports, self._settings.policy
        report = ProgressReport.model_validate({**progress, "experiment": name, "envoy": self._envoy})
        if self._budget is not None:  # losses and prints are no part of what it protects
            reports = "steps" if reports != "nothing" else reports
        kept = {
            "values": policy.released_values(report.values) if reports in ("losses", "logs") else {},
            "log": report.log if reports == "logs" else "",
        }
        answer = self._rounds.report_progress(encode(report.model_copy(update=kept)), timeout=TIMEOUT_SECONDS)
        return decode_answer(answer, Reported).seconds

    def _stop_if_ended(self) -> None:
        if self._has_ended():
            raise EndedError("the worker has ended")

    def _retry(self, call: Callable[[], Answer]) -> Answer:
        while True:
            self._stop_if_ended()
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() in REFUSALS:
                    raise DirectorRefusedError(f"the director refused: {error.details()}") from None
                reason = fault_of(self._channel) or f"{error.code().name} {error.details()}"
                logger.warning("the director is out of reach: %s", reason)
                wait_to_repeat(self._channel)
