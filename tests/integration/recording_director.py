"""A director that keeps a copy of all messages between it and envoys or notebooks, as they are without TLS."""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import grpc

from openfl_audio.cli.main import main
from openfl_audio.director.services import rounds

RECORDED, SIZES = "recorded", "sizes"


def record_messages() -> None:
    """Write every message into a file RECORDED in the folder that this process was started in.

    A line for each in SIZES has its method, whether it is a request or an answer, and its bytes.
    """
    make = grpc.method_handlers_generic_handler

    def keep(method: str, kind: str, message: bytes) -> bytes:
        with Path(RECORDED).open("ab") as file:
            file.write(message)
        with Path(SIZES).open("a") as file:
            file.write(json.dumps([method, kind, len(message)]) + "\n")
        return message

    def recording(service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> grpc.GenericRpcHandler:
        if service != rounds.SERVICE:
            return make(service, handlers)

        def tapped(name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
            taps = partial(keep, name, "request"), partial(keep, name, "answer")
            return handler._replace(request_deserializer=taps[0], response_serializer=taps[1])

        return make(service, {name: tapped(name, handler) for name, handler in handlers.items()})

    rounds.grpc.method_handlers_generic_handler = recording


if __name__ == "__main__":
    record_messages()
    sys.exit(main())
