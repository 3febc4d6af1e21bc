"""Calls of the page's process to its director, for somebody who is logged in or for itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from grpc import aio
from pydantic import BaseModel

from openfl_audio.errors import OpenFLAudioError, WireError
from openfl_audio.protocol.codec import decode_answer, encode
from openfl_audio.protocol.messages import (
    DetailsRequest,
    DropRequest,
    ExperimentDetails,
    ExperimentRequest,
    FederationStatus,
    HistoryRequest,
    LogRequest,
    ModelRequest,
    StatusRequest,
)
from openfl_audio.protocol.page import (
    SESSION,
    FederationTotals,
    Login,
    LoginRequest,
    PageStub,
    SessionDetails,
    SessionRequest,
    TotalsRequest,
)
from openfl_audio.protocol.wire import CHANNEL_OPTIONS, RoundsStub

Kind = TypeVar("Kind", bound=BaseModel)
ANSWER_SECONDS = 20.0
# Pages look once a second, each at a moment of its own.
SHARED_SECONDS = 0.8
# What a browser is told of a director's refusal.
STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
}
UNAVAILABLE = 503


class DirectorRefusal(OpenFLAudioError):  # noqa: N818 - it is an answer as any other
    """The director's answer is a refusal, with the status that a browser gets; the message is the director's."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class DirectorLink:
    """A channel to the director over its local socket; to be made in a running event loop."""

    def __init__(self, path: str) -> None:
        options = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
        self._channel = aio.insecure_channel(f"unix:{path}", options=options)
        self.rounds, self.page = RoundsStub(self._channel), PageStub(self._channel)
        self._shared: dict[tuple[str, bytes], tuple[float, asyncio.Future[bytes]]] = {}

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def shared(self, secret: str, call: Callable[..., Any], request: BaseModel) -> bytes:
        """Return an answer that all pages of one session share for a moment, so that many cost the director no more."""
        key, now = (secret, encode(request)), time.monotonic()
        if key not in self._shared or now - self._shared[key][0] > SHARED_SECONDS:
            answer = call(key[1], timeout=ANSWER_SECONDS, metadata=((SESSION, secret),))
            fresh = {other: each for other, each in self._shared.items() if now - each[0] <= SHARED_SECONDS}
            self._shared = fresh | {key: (now, asyncio.ensure_future(_result(answer)))}
        return await asyncio.shield(self._shared[key][1])

    async def log_in(self, token: str) -> str:
        """Return the secret of a new session, "" for a token that is not good."""
        with refusals():
            answer = await self.page.log_in(encode(LoginRequest(token=token)), timeout=ANSWER_SECONDS)
            return decode_answer(answer, Login).session

    async def totals(self) -> FederationTotals:
        """Return the director's numbers for monitoring."""
        with refusals():
            answer = await self.page.get_totals(encode(TotalsRequest()), timeout=ANSWER_SECONDS)
            return decode_answer(answer, FederationTotals)


class Person:
    """Somebody who is logged in: the director answers each call as one of this person."""

    def __init__(self, link: DirectorLink, secret: str) -> None:
        self._link, self._secret, self._metadata = link, secret, ((SESSION, secret),)

    async def _ask(self, call: Callable[..., Any], request: BaseModel, kind: type[Kind]) -> Kind:
        with refusals():
            answer = await call(encode(request), timeout=ANSWER_SECONDS, metadata=self._metadata)
            return decode_answer(answer, kind)

    async def _look(self, call: Callable[..., Any], request: BaseModel, kind: type[Kind]) -> Kind:
        with refusals():
            return decode_answer(await self._link.shared(self._secret, call, request), kind)

    async def _order(self, call: Callable[..., Any], request: BaseModel) -> None:
        with refusals():
            await call(encode(request), timeout=ANSWER_SECONDS, metadata=self._metadata)

    async def session(self) -> SessionDetails:
        """Return who this is."""
        return await self._ask(self._link.page.get_session, SessionRequest(), SessionDetails)

    async def log_out(self) -> None:
        """End the session."""
        await self._order(self._link.page.log_out, SessionRequest())

    async def status(self) -> FederationStatus:
        """Return the envoys and the experiments of the federation."""
        return await self._look(self._link.rounds.get_status, StatusRequest(), FederationStatus)

    async def experiment(self, name: str) -> ExperimentDetails:
        """Return an experiment as it is now, without the records of its rounds."""
        request = DetailsRequest(experiment=name, latest=False)
        return await self._look(self._link.rounds.get_experiment, request, ExperimentDetails)

    async def stop(self, name: str) -> None:
        """End an experiment."""
        await self._order(self._link.rounds.stop_experiment, ExperimentRequest(experiment=name))

    async def resume(self, name: str) -> None:
        """Let an experiment that failed or was stopped continue."""
        await self._order(self._link.rounds.resume_experiment, ExperimentRequest(experiment=name))

    async def delete(self, name: str) -> None:
        """Remove an experiment that has ended."""
        await self._order(self._link.rounds.delete_experiment, ExperimentRequest(experiment=name))

    async def drop(self, name: str, envoy: str) -> None:
        """Let an experiment continue without one of its envoys."""
        await self._order(self._link.rounds.drop_envoy, DropRequest(experiment=name, envoy=envoy))

    def history(self, name: str, first: int) -> AsyncIterator[bytes]:
        """Yield the records of rounds so far as JSON, from record `first` on, and then an Ended."""
        request = HistoryRequest(experiment=name, first=first, follow=False)
        return _stream(self._link.rounds.get_history(encode(request), metadata=self._metadata))

    def log(self, name: str, envoy: str) -> AsyncIterator[bytes]:
        """Yield what the tasks of an envoy printed."""
        request = LogRequest(experiment=name, envoy=envoy)
        return _stream(self._link.rounds.get_log(encode(request), metadata=self._metadata))

    def model(self, name: str, which: str) -> AsyncIterator[bytes]:
        """Yield a model as `tensors.stream` does."""
        request = ModelRequest(experiment=name, which=which)
        return _stream(self._link.rounds.get_model(encode(request), metadata=self._metadata))


async def _result(answer: Awaitable[bytes]) -> bytes:
    return await answer


async def _stream(call: Any) -> AsyncIterator[bytes]:
    try:
        with refusals():
            async for answer in call:
                yield answer
    finally:
        call.cancel()


@contextmanager
def refusals() -> Iterator[None]:
    """Raise gRPC's errors in the block as DirectorRefusal."""
    try:
        yield
    except aio.AioRpcError as error:
        if error.code() in STATUS:
            raise DirectorRefusal(STATUS[error.code()], error.details() or "") from None
        sentence = f"the director does not answer ({error.details()}): is it restarting?"
        raise DirectorRefusal(UNAVAILABLE, sentence) from None
    except WireError as error:
        raise DirectorRefusal(UNAVAILABLE, f"the director answers otherwise than the page expects: {error}") from None
