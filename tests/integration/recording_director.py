"""A director that keeps a copy of all messages between it and envoys or notebooks, as they are without TLS."""

import sys
from collections.abc import Mapping
from pathlib import Path

import grpc

from openfl_audio.cli.main import main
from openfl_audio.director.services import rounds

RECORDED = "recorded"


def record_messages() -> None:
    """Write every message into a file RECORDED in the folder that this process was started in."""
    make = grpc.method_handlers_generic_handler

    def keep(message: bytes) -> bytes:
        with Path(RECORDED).open("ab") as file:
            file.write(message)
        return message

    def recording(service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> grpc.GenericRpcHandler:
        if service != rounds.SERVICE:
            return make(service, handlers)
        taps = {"request_deserializer": keep, "response_serializer": keep}
        return make(service, {name: handler._replace(**taps) for name, handler in handlers.items()})

    rounds.grpc.method_handlers_generic_handler = recording


if __name__ == "__main__":
    record_messages()
    sys.exit(main())
