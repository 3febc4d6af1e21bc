"""Errors of any call: a caller without the right, too many calls, bytes that are no message, calls not served here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from openfl_audio.director.authorization import Context, Gate, refuse, roles_of
from openfl_audio.director.calls import OpenCalls
from openfl_audio.director.notification import within
from openfl_audio.director.receiving import Connection, Connections
from openfl_audio.director.shortage import telling_lack
from openfl_audio.errors import (
    CallEndedError,
    CertificateError,
    LackError,
    MessageTooLargeError,
    SessionEndedError,
    TooManyCallsError,
)
from openfl_audio.protocol.certificates import owner_of

# After so long a call without a first message is dropped, and one that was ended while its other end does not read.
FIRST_MESSAGE_SECONDS = 60.0
FAREWELL_SECONDS = 1.0


class MalformedRequestError(ValueError):
    """A message that cannot be read."""


MALFORMED = object()


class GuardingInterceptor(aio.ServerInterceptor):
    """Checks the certificate of a call before its first message is received, and answers errors in one sentence.

    gRPC by itself would write a traceback for them. To gRPC every call has streams of requests and answers here; on the
    wire there is no difference: of a call with one request it would receive that, however large, before the caller
    could be checked.
    """

    def __init__(self, gate: Gate, calls: OpenCalls, connections: Connections, runs: Path) -> None:
        """Guard the calls of a director whose experiments are on the disk of `runs`."""
        self._gate = gate
        self._calls, self._connections, self._runs = calls, connections, runs

    async def intercept_service(self, continuation: Callable, details: grpc.HandlerCallDetails) -> Any:
        """Return a handler that guards the one that gRPC has found."""
        handler = await continuation(details)
        if handler is None:
            return None  # gRPC itself says that there is no such call
        name, roles = details.method.rpartition("/")[2], roles_of(_method(handler))

        def deserialize(data: bytes) -> tuple[Any, int]:
            try:
                return handler.request_deserializer(data) if handler.request_deserializer else data, len(data)
            except DecodeError:
                return MALFORMED, len(data)

        async def answer(requests: AsyncIterator[Any], context: Context) -> None:
            if not roles:
                await refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"this director does not serve {name}")
            try:
                with self._admit(context, roles), telling_lack(self._runs):
                    await _serve(handler, _checked(requests, self._connection(context)), context)
            except MalformedRequestError:
                await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a request of {name}")
            except CertificateError as error:
                await refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(error))
            except SessionEndedError as error:
                await refuse(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
            except TooManyCallsError as error:
                await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except LackError as error:
                await refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
            except MessageTooLargeError as error:
                await _drop(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except CallEndedError as error:
                await _drop(context, grpc.StatusCode.UNAUTHENTICATED, str(error))

        return grpc.stream_stream_rpc_method_handler(answer, deserialize, handler.response_serializer)

    def _admit(self, context: Context, roles: tuple[str, ...]) -> contextlib.AbstractContextManager[None]:
        """Check the role of the certificate, and count the call for it. Without TLS there is none."""
        certificate = self._gate.check_caller(context, roles)
        return self._calls.open(owner_of(certificate.encode())) if certificate else contextlib.nullcontext()

    def _connection(self, context: Context) -> Connection:
        certificates = context.auth_context().get("x509_pem_cert")
        peer = context.peer()
        return self._connections.of(peer, owner_of(certificates[0]).name if certificates else peer.rpartition(":")[0])


async def _drop(context: Context, code: grpc.StatusCode, sentence: str) -> NoReturn:
    """End a call whose other end may not read."""
    with contextlib.suppress(asyncio.TimeoutError):
        await within(FAREWELL_SECONDS, refuse(context, code, sentence))
    raise asyncio.CancelledError  # gRPC drops it


def _method(handler: grpc.RpcMethodHandler) -> Callable:
    """Return the method of a service that answers calls."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


async def _serve(handler: grpc.RpcMethodHandler, requests: AsyncIterator[Any], context: Context) -> None:
    if handler.request_streaming:
        if handler.response_streaming:
            await handler.stream_stream(requests, context)
        else:
            await context.write(await handler.stream_unary(requests, context))
        return
    request = await anext(requests, MALFORMED)
    if request is MALFORMED:
        raise MalformedRequestError
    if handler.response_streaming:
        async with contextlib.aclosing(handler.unary_stream(request, context)) as responses:
            async for response in responses:
                await context.write(response)
    else:
        await context.write(await handler.unary_unary(request, context))


async def _checked(requests: AsyncIterator[tuple[Any, int]], connection: Connection) -> AsyncIterator[Any]:
    requests = aiter(requests)
    seconds: float | None = FIRST_MESSAGE_SECONDS
    while True:
        try:
            with connection.message():
                request, size = await within(seconds, anext(requests))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise MalformedRequestError from None
        connection.account(size)
        if request is MALFORMED:
            raise MalformedRequestError
        yield request
        seconds = None
