"""The worker's line to its experiment on the director."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc

from federation.wire import RoundsStub, Tensors, encode, pack, pieces, unpack, wait_for_connection

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
Answer = TypeVar("Answer")


class DirectorRefusedError(RuntimeError):
    """The director answered, and does not want what was sent."""


class RoundsClient:
    """Calls are repeated while the director is out of reach: it counts an update once however often it arrives."""

    def __init__(self, channel: grpc.Channel, envoy: str, experiment: str, aggregator_uuid: str, federation_uuid: str):
        self.envoy = envoy
        self.experiment = experiment
        self._channel = channel
        self._aggregator = aggregator_pb2_grpc.AggregatorStub(channel)
        self._rounds = RoundsStub(channel)
        self._header = aggregator_pb2.MessageHeader(
            sender=envoy, receiver=aggregator_uuid, federation_uuid=federation_uuid
        )

    def get_tasks(self, collaborator_name: str) -> tuple[Sequence[aggregator_pb2.Task], int, int, bool]:
        """Tasks, round number, seconds to sleep (OpenFL's; never any here), and whether the experiment has ended.

        Waits on the director until there are tasks, or for the length of a long poll.
        """
        request = aggregator_pb2.GetTasksRequest(header=self._header)
        answer = self._insist(lambda: self._aggregator.GetTasks(request))
        return answer.tasks, answer.round_number, answer.sleep_time, answer.quit

    def get_model(self) -> Tensors:
        request = encode({"experiment": self.experiment, "envoy": self.envoy})
        tensors, _ = unpack(self._insist(lambda: b"".join(self._rounds.get_model(request))))
        return tensors

    def send_update(self, round_number: int, results: dict[str, dict[str, Any]], tensors: Tensors) -> None:
        metadata = {"experiment": self.experiment, "envoy": self.envoy, "round": round_number, "results": results}
        data = pack(tensors, metadata)
        self._insist(lambda: self._rounds.send_update(pieces(data)))

    def _insist(self, call: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise DirectorRefusedError(f"the director refused: {error.details()}") from None
                logger.warning("the director is out of reach: %s", error.details())
                wait_for_connection(self._channel, RETRY_SECONDS)
