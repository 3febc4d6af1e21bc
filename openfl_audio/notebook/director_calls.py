"""Calls that people make to the director, from a notebook or from the command line."""

import codecs
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from openfl_audio.errors import DirectorError, ExperimentFailedError, WireError
from openfl_audio.protocol.certificates import USER, Credentials
from openfl_audio.protocol.codec import decode_answer, decode_history, encode
from openfl_audio.protocol.messages import (
    DropRequest,
    Ended,
    ExperimentDetails,
    ExperimentRequest,
    FederationStatus,
    HistoryRequest,
    LiveRound,
    LogRequest,
    ModelRequest,
    RoundRecord,
    StatusRequest,
    Waits,
)
from openfl_audio.protocol.page import Invitation, InvitationRequest, PageStub
from openfl_audio.protocol.tensors import Tensors, receive
from openfl_audio.protocol.wire import (
    RoundsStub,
    channel_credentials,
    explain_unreachable,
    open_channel,
    send_chunks,
    wait_for_connection,
)

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class DirectorCalls:
    """The calls of the service `openfl_audio.Rounds` that are for people, over one channel that stays open."""

    def __init__(
        self,
        client_id: str,
        address: str,
        credentials: Credentials | None,
        who: str = "notebook",
        timeout_s: float | None = None,
    ) -> None:
        """Open a channel to the director at `address`, "HOST:PORT"; without credentials TLS is off.

        `who` calls is for messages, and `timeout_s` how long an answer may take.
        """
        line = channel_credentials(credentials) if credentials else None
        self.channel = open_channel(address, line, client_id=client_id)
        self.address, self.client_id = address, client_id
        self.role = credentials.role if credentials else USER
        self._root = credentials.root if credentials else None
        self._who, self._timeout = who, timeout_s
        self.rounds = RoundsStub(self.channel)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise gRPC's errors in the block as DirectorError, in one sentence.

        The error of a director that is away comes a moment later, in which the channel may reconnect.
        """
        try:
            yield
        except grpc.RpcError as error:
            if error.code() in UNREACHABLE:
                # Between calls a channel makes no progress with its connection: without this wait the next call would
                # find it as it is now.
                wait_for_connection(self.channel, RETRY_SECONDS)
                raise DirectorError(explain_unreachable(self.address, error.details(), self._root, self._who)) from None
            raise DirectorError(f"the director at {self.address} refused: {error.details()}") from None
        except WireError as error:
            raise DirectorError(
                f"the director at {self.address} answers otherwise than this version of openfl-audio expects: {error}"
            ) from None

    def submit(self, submission: Iterable[bytes]) -> None:
        """Send an experiment's zip file, in chunks."""
        with self.translated_errors():
            send_chunks(self.rounds.submit, submission)

    def stream_history(self, experiment_name: str) -> Iterator[dict[str, Any] | LiveRound | Waits | Ended]:
        """Yield one record a round until the experiment has ended, then an Ended. Raises ExperimentFailedError.

        Records are dictionaries with the fields of RoundRecord. Between them come Waits, and every second a LiveRound.
        A director that goes away meanwhile is waited for, and a log message says so.
        """
        received, waiting = 0, False
        with self.translated_errors():
            while True:
                try:
                    request = HistoryRequest(experiment=experiment_name, first=received, live=True)
                    for answer in self.rounds.get_history(encode(request)):
                        message, waiting = decode_history(answer), False
                        if isinstance(message, Ended) and message.error:
                            raise ExperimentFailedError(message.error)
                        if isinstance(message, RoundRecord):
                            received += 1
                            yield message.model_dump()
                        else:
                            yield message
                    return
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
                    if not waiting:
                        logger.warning("lost the director at %s (%s): waiting for it", self.address, error.details())
                    waiting = True
                    wait_for_connection(self.channel, RETRY_SECONDS)

    def read_history(self, experiment_name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of all rounds so far, one after the other: together they may be gigabytes."""
        request = encode(HistoryRequest(experiment=experiment_name, follow=False))
        with self.translated_errors():
            for answer in self.rounds.get_history(request):
                message = decode_history(answer)
                if isinstance(message, RoundRecord):
                    yield message.model_dump()

    def get_experiment(self, experiment_name: str) -> ExperimentDetails:
        """Return the experiment as it is now."""
        with self.translated_errors():
            request = encode(ExperimentRequest(experiment=experiment_name))
            return decode_answer(self.rounds.get_experiment(request, timeout=self._timeout), ExperimentDetails)

    def stop_experiment(self, experiment_name: str) -> None:
        """End an experiment."""
        with self.translated_errors():
            request = encode(ExperimentRequest(experiment=experiment_name))
            self.rounds.stop_experiment(request, timeout=self._timeout)

    def resume_experiment(self, experiment_name: str) -> None:
        """Let an experiment that failed or was stopped continue."""
        with self.translated_errors():
            request = encode(ExperimentRequest(experiment=experiment_name))
            self.rounds.resume_experiment(request, timeout=self._timeout)

    def delete_experiment(self, experiment_name: str) -> None:
        """Remove an experiment that has ended."""
        with self.translated_errors():
            request = encode(ExperimentRequest(experiment=experiment_name))
            self.rounds.delete_experiment(request, timeout=self._timeout)

    def drop_envoy(self, experiment_name: str, envoy: str) -> None:
        """Let an experiment continue without one of its envoys."""
        with self.translated_errors():
            request = encode(DropRequest(experiment=experiment_name, envoy=envoy))
            self.rounds.drop_envoy(request, timeout=self._timeout)

    def get_log(self, experiment_name: str, envoy: str, follow: bool = False) -> Iterator[str]:
        """Yield what the tasks of an envoy printed, as it comes; with `follow` until the experiment has ended."""
        request = encode(LogRequest(experiment=experiment_name, envoy=envoy, follow=follow))
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with self.translated_errors():
            for chunk in self.rounds.get_log(request):
                yield decoder.decode(chunk)

    def get_status(self) -> FederationStatus:
        """Return the envoys and the experiments of the whole federation."""
        with self.translated_errors():
            answer = self.rounds.get_status(encode(StatusRequest()), timeout=self._timeout)
            return decode_answer(answer, FederationStatus)

    def get_invitation(self) -> Invitation:
        """Return an invitation to the page in the browser, for the owner of this side's certificate."""
        with self.translated_errors():
            answer = PageStub(self.channel).invite(encode(InvitationRequest()), timeout=self._timeout)
            return decode_answer(answer, Invitation)

    def get_model(self, experiment_name: str, which: str) -> Tensors:
        """Return model 'initial', 'last', 'best' or 'best-METRIC' as the director keeps it."""
        request = encode(ModelRequest(experiment=experiment_name, which=which))
        with self.translated_errors():
            tensors, _ = receive(self.rounds.get_model(request))
        return tensors
