"""What goes over the wire besides OpenFL's own messages: whole models and updates, as streams of safetensors bytes.

OpenFL fetches every tensor by a call of its own. Here a model crosses in one streaming call of the service
`openfl_audio.Rounds`, which stands on the same port as OpenFL's `Director` and `Aggregator` services. Its messages are
plain bytes: JSON for requests and answers, pieces of a safetensors file for tensors.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from openfl.protocols.interceptors import headers_adder
from safetensors import SafetensorError
from safetensors.numpy import load, save

SERVICE = "openfl_audio.Rounds"
PIECE_BYTES = 1 << 20
METADATA_KEY = "openfl_audio"

Tensors = dict[str, np.ndarray]

# Pieces are small, so no message comes near the limit; OpenFL's own messages may hold a whole stock update.
# A dead peer is noticed by keep-alive; two directors on one port must not share it silently.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 1 << 30),
    ("grpc.max_receive_message_length", 1 << 30),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Whoever waits for a director looks for it every second or two, not after ever longer pauses.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.so_reuseport", 0),
]


class WireError(ValueError):
    """Bytes that are not a model or an update."""


def pack(tensors: Tensors, metadata: dict[str, Any] | None = None) -> bytes:
    """Tensors and JSON metadata as the bytes of one safetensors file."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(contiguous, metadata={METADATA_KEY: json.dumps(metadata or {})})


def unpack(data: bytes) -> tuple[Tensors, dict[str, Any]]:
    """Inverse of `pack`. Raises WireError when `data` is not a safetensors file with our metadata."""
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        metadata = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
        return load(data), metadata
    except (SafetensorError, ValueError, AttributeError) as error:
        raise WireError(f"not a safetensors file: {error}") from error


def pieces(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def decode(message: bytes) -> dict[str, Any]:
    return json.loads(message)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None, **headers: str) -> grpc.Channel:
    """A channel to `address`, with TLS if there are credentials; `headers` go along with every call."""
    if credentials is None:
        channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
    return grpc.intercept_channel(channel, headers_adder(headers))


def wait_for_connection(channel: grpc.Channel, seconds: float) -> None:
    """Wait until `channel` is connected, `seconds` at most, and a moment in any case.

    A pause that only sleeps would not do: between calls a channel makes no progress with its connection.
    """
    time.sleep(min(0.1, seconds))
    ready = grpc.channel_ready_future(channel)
    try:
        ready.result(seconds)
    except grpc.FutureTimeoutError:
        ready.cancel()


class RoundsStub:
    """Client side of the service `openfl_audio.Rounds`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.get_model = channel.unary_stream(f"/{SERVICE}/GetModel")
        self.send_update = channel.stream_unary(f"/{SERVICE}/SendUpdate")
        self.get_history = channel.unary_stream(f"/{SERVICE}/GetHistory")
