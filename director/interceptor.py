"""What can be wrong with any call: bytes that are no message, and calls that are not served here."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from director.gate import Context, refuse


class MalformedRequestError(ValueError):
    """A message of a stream that is none."""


MALFORMED = object()


class RefusingInterceptor(aio.ServerInterceptor):
    """Ends such calls with one sentence; gRPC would write a traceback for each."""

    async def intercept_service(self, continuation: Callable, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None  # gRPC itself says that there is no such call
        name = details.method.rpartition("/")[2]
        make, behavior = _kind(handler)
        answer = _answer_stream if handler.unary_stream else _answer_one

        def deserialize(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data) if handler.request_deserializer else data
            except DecodeError:
                return MALFORMED

        return make(answer(name, behavior), deserialize, handler.response_serializer)


def _kind(handler: grpc.RpcMethodHandler) -> tuple[Callable, Callable]:
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


def _answer_one(name: str, behavior: Callable) -> Callable:
    """Of a call with one answer, or one that writes its answers itself while it reads."""

    async def answer(request: Any, context: Context) -> Any:
        if request is MALFORMED:
            await _refuse_malformed(context, name)
        try:
            return await behavior(_checked(request), context)
        except MalformedRequestError:
            await _refuse_malformed(context, name)
        except NotImplementedError:
            await refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"this director does not serve {name}")

    return answer


def _answer_stream(name: str, behavior: Callable) -> Callable:
    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
        if request is MALFORMED:
            await _refuse_malformed(context, name)
        try:
            responses = behavior(request, context)
        except NotImplementedError:
            await refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"this director does not serve {name}")
        async for response in responses:
            yield response

    return answer


def _checked(request: Any) -> Any:
    return _checked_stream(request) if hasattr(request, "__aiter__") else request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is MALFORMED:
            raise MalformedRequestError
        yield request


async def _refuse_malformed(context: Context, name: str) -> None:
    await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a request of {name}")
