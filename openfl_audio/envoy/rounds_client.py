"""Connection of a worker to its experiment on the director."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import grpc
import numpy as np
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc

from openfl_audio.envoy.channel import fault_of
from openfl_audio.envoy.job import Sending
from openfl_audio.envoy.policy import Policy, SentToday
from openfl_audio.errors import DirectorRefusedError
from openfl_audio.protocol.bundle import Bundle, describe_model
from openfl_audio.protocol.messages import GlobalModel, ModelRequest, TaskResult, UpdateMessage, encode, validate
from openfl_audio.protocol.record import sha256_of_names
from openfl_audio.protocol.tensors import Receiver, Tensors, stream
from openfl_audio.protocol.wire import RoundsStub, send_chunks, wait_for_connection

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
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
    """Client of one experiment on the director, for a worker.

    Calls are retried while the director is out of reach: it counts an update once however often it arrives.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        envoy: str,
        experiment: str,
        aggregator_uuid: str,
        federation_uuid: str,
        precision: str,
        announce: Callable[[Sending], None],
        approved: Bundle | None = None,
        policy: Policy | None = None,
        sent_today: SentToday | None = None,
    ) -> None:
        """Take part in `experiment` as `envoy`, of a site with a `policy` that has sent so much today.

        `announce` is called before an update is sent; `approved` is what the site has approved, if it approves.
        """
        self._approved, self._policy, self._sent_today = approved, policy or Policy(), sent_today
        self.envoy = envoy
        self._announce = announce
        self.experiment = experiment
        self.precision = np.dtype(precision)
        self._channel = channel
        self._receiver = Receiver()
        self._aggregator = aggregator_pb2_grpc.AggregatorStub(channel)
        self._rounds = RoundsStub(channel)
        self._header = aggregator_pb2.MessageHeader(
            sender=envoy, receiver=aggregator_uuid, federation_uuid=federation_uuid
        )

    def get_tasks(self, collaborator_name: str) -> tuple[Sequence[aggregator_pb2.Task], int, int, bool]:
        """Wait for tasks, for the length of a long poll at most.

        Returns tasks, round number, seconds to sleep (OpenFL's; always 0 here), and whether the experiment has ended.
        """
        request = aggregator_pb2.GetTasksRequest(header=self._header)
        answer = self._retry(lambda: self._aggregator.GetTasks(request))
        return answer.tasks, answer.round_number, answer.sleep_time, answer.quit

    def get_model(self) -> tuple[Tensors, GlobalModel]:
        """Return the global model, and what is said of it. The next call overwrites the arrays."""
        request = encode(ModelRequest(experiment=self.experiment, envoy=self.envoy))
        tensors, metadata = self._retry(lambda: self._receiver.receive(self._rounds.get_model(request)))
        told = validate(metadata, GlobalModel)
        if self._approved is not None:
            check_approved(self._approved, told.round, tensors)
        return tensors, told

    def send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
        """Send the update of a round.

        Raises DirectorRefusedError for one that the director does not count, and PolicyError for one that the site does
        not let leave.
        """
        sent = {name: self._as_sent(tensor) for name, tensor in tensors.items()}
        n_bytes = sum(tensor.nbytes for tensor in sent.values())
        released = self._policy.check_update(results, n_bytes)
        if self._sent_today is not None:
            self._sent_today.add(n_bytes, self._policy.max_day_mb)
        update = UpdateMessage(experiment=self.experiment, envoy=self.envoy, round=round_number, results=released)
        names_sha256 = _digest(tuple(sent))
        self._announce(Sending(round=round_number, bytes=n_bytes, tensors=len(sent), names_sha256=names_sha256))
        self._retry(lambda: send_chunks(self._rounds.send_update, stream(sent, update.model_dump())))

    def _as_sent(self, tensor: np.ndarray) -> np.ndarray:
        half = self.precision == np.float16 and np.issubdtype(tensor.dtype, np.floating)
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and the director says so
            return tensor.astype(np.float16) if half else tensor

    def _retry(self, call: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() in REFUSALS:
                    raise DirectorRefusedError(f"the director refused: {error.details()}") from None
                reason = fault_of(self._channel) or f"{error.code().name} {error.details()}"
                logger.warning("the director is out of reach: %s", reason)
                wait_to_repeat(self._channel)
