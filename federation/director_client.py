"""A notebook's line to the director."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from openfl.protocols import director_pb2, director_pb2_grpc
from openfl.transport.grpc import director_client

from federation.plan import ExperimentPlan
from federation.wire import PIECE_BYTES, RoundsStub, Tensors, decode, encode, open_channel, unpack


class DirectorError(RuntimeError):
    """The director cannot be reached, or refuses."""


class ExperimentFailedError(RuntimeError):
    """An experiment ended on an envoy's error, which is the message."""


class DirectorClient(director_client.DirectorClient):
    """OpenFL's client of the director, over one channel that stays open, plus the service for whole models."""

    def __init__(self, client_id: str, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        channel = open_channel(address, credentials, client_id=client_id)
        self.address = address
        self.stub = director_pb2_grpc.DirectorStub(channel)
        self.rounds = RoundsStub(channel)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """gRPC's errors as one sentence."""
        try:
            yield
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.ABORTED:
                raise ExperimentFailedError(error.details()) from None
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise DirectorError(
                    f"cannot reach the director at {self.address} ({error.details()}): is it running there, "
                    "and is TLS on or off on both sides?"
                ) from None
            raise DirectorError(f"the director at {self.address} refused: {error.details()}") from None

    def submit(self, plan: ExperimentPlan, submission: Path) -> None:
        def messages() -> Iterator[director_pb2.ExperimentInfo]:
            with submission.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    data = director_pb2.ExperimentData(size=len(piece), npbytes=piece)
                    yield director_pb2.ExperimentInfo(
                        name=plan.name, collaborator_names=plan.envoys, experiment_data=data
                    )

        with self.translated_errors():
            self.stub.SetNewExperiment(messages())

    def stream_history(self, experiment_name: str) -> Iterator[dict[str, Any]]:
        """One record a round, until the experiment has ended. Raises ExperimentFailedError."""
        with self.translated_errors():
            for record in self.rounds.get_history(encode({"experiment": experiment_name})):
                yield decode(record)

    def get_model(self, experiment_name: str, which: str) -> Tensors:
        """Model 'initial', 'last' or 'best' as the director keeps it."""
        with self.translated_errors():
            tensors, _ = unpack(
                b"".join(self.rounds.get_model(encode({"experiment": experiment_name, "which": which})))
            )
        return tensors
