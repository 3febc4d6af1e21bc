"""Connections to a director, and the client side of the service `openfl_audio.Rounds`.

OpenFL fetches every tensor by a call of its own. Here a model crosses in one streaming call of this service, which
shares the port of OpenFL's services `Director` and `Aggregator`. Its messages are plain bytes: JSON for requests and
answers (see `openfl_audio.protocol.messages`), chunks of a safetensors file for tensors (see
`openfl_audio.protocol.tensors`).
"""

import queue
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import grpc
from openfl.protocols.interceptors import headers_adder

from openfl_audio.address import join_address, proxy_of, route_to, split_address
from openfl_audio.errors import WireError
from openfl_audio.protocol.certificates import Credentials, is_for, names_of
from openfl_audio.protocol.codec import decode_upload
from openfl_audio.protocol.messages import Accepted, Counted, Credit

SERVICE = "openfl_audio.Rounds"

# Chunks are small. OpenFL's own envoys get a tensor in one message.
MAX_MESSAGE_BYTES = 256 << 20
# Timeout of a look at the certificate of a director that gRPC could not connect to.
PROBE_SECONDS = 3.0
# OpenSSL's codes of a chain that ends at no authority that is trusted.
UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
# A dead peer is noticed by keep-alive; two directors on one port must not share it silently.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # In the middle of a download another ping may be on its way, by which gRPC measures the line. Then keep-alive sends
    # none, and only this ends the wait: a minute by default.
    ("grpc.http2.ping_timeout_ms", 15_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # A client that waits for a director tries every second or two, not after ever longer pauses.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.so_reuseport", 0),
    # Tensors hardly get smaller, and a message of zeros would unpack to a thousand times its size.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
]


def channel_credentials(own: Credentials) -> grpc.ChannelCredentials:
    """Return gRPC's credentials of a client."""
    return grpc.ssl_channel_credentials(own.root, own.private_key, own.certificate)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None, **headers: str) -> grpc.Channel:
    """Open a channel to `address`, with TLS if there are credentials; `headers` are sent with every call.

    This machine is never reached through a proxy, which would look for the director on its own machine.
    """
    host, port = split_address(address)
    options = CHANNEL_OPTIONS if proxy_of(host) else [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
    if credentials is None:
        channel = grpc.insecure_channel(join_address(host, port), options=options)
    else:
        channel = grpc.secure_channel(join_address(host, port), credentials, options=options)
    return grpc.intercept_channel(channel, headers_adder(headers))


def explain_unreachable(address: str, details: str | None, root: bytes | None, who: str = "notebook") -> str:
    """Explain in one sentence why a director cannot be reached, as far as that can be known.

    `details` are gRPC's. `root` is the authority's certificate (PEM), None without TLS. `who` does not reach it.
    """
    host, _ = split_address(address)
    sentence = f"cannot reach the director at {route_to(address)} ({details}): "
    if fault := certificate_fault(address, root):
        return sentence + fault
    if proxy_of(host):
        sentence += f"does the proxy let it through (no_proxy={host} goes without), "
    return sentence + f"is it running there, and with TLS {'on' if root else 'off'} like this {who}?"


def certificate_fault(address: str, root: bytes | None) -> str:
    """Return what is wrong with the certificate that a director shows, or "" if nothing is, or it shows none.

    Waiting does not mend it. `root` is the authority's certificate (PEM), None without TLS.
    """
    host, port = split_address(address)
    if root is None or proxy_of(host):
        return ""
    try:
        names = names_of(presented_certificate(host, port, root))
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in UNKNOWN_AUTHORITY:
            return "its certificate is signed by another authority than the one in this side's ca.crt"
        return f"its certificate does not hold ({error.verify_message})"
    except (OSError, ValueError):
        return ""
    if is_for(names, host):
        return ""
    return (
        f"its certificate is for {', '.join(names)}, and not for {host}; "
        f"openfl-audio certificates make --director {host} --force, or request with --host {host}, gets one that is"
    )


def presented_certificate(host: str, port: int, root: bytes) -> bytes:
    """Return the certificate (DER) that a server shows, whatever names it is for. Raises OSError and ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=root.decode())
    with (
        socket.create_connection((host, port), timeout=PROBE_SECONDS) as line,
        context.wrap_socket(line) as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""


def wait_for_connection(channel: grpc.Channel, seconds: float) -> None:
    """Wait until `channel` is connected, `seconds` at most, and a moment in any case.

    Sleeping alone would not do: between calls a channel makes no progress with its connection.
    """
    time.sleep(min(0.1, seconds))
    ready = grpc.channel_ready_future(channel)
    try:
        ready.result(seconds)
    except grpc.FutureTimeoutError:
        ready.cancel()


def send_chunks(call: grpc.StreamStreamMultiCallable, chunks: Iterable[bytes]) -> Counted | Accepted:
    """Stream chunks under the director's flow control, and return its last answer. Raises grpc.RpcError.

    The first chunk is sent at once and as it is, the others as the director grants credit: each Credit allows some more
    messages of a size, and larger chunks are cut.
    """
    credit: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def with_credit() -> Iterator[bytes]:
        remaining = iter(chunks)
        yield from islice(remaining, 1)
        for chunk in remaining:
            while chunk:
                size = credit.get()
                yield chunk[:size]
                chunk = chunk[size:] if size else b""

    answers, last = call(with_credit()), None
    try:
        for answer in answers:
            last = decode_upload(answer)
            if isinstance(last, Credit):
                for _ in range(last.chunks):
                    credit.put(last.chunk_bytes)
        if last is None or isinstance(last, Credit):
            raise WireError("the director ended an upload without an answer")
        return last
    finally:
        # gRPC's thread may wait for credit; with the call it ends.
        answers.cancel()
        credit.put(None)


class RoundsStub:
    """Client side of the service `openfl_audio.Rounds`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.attend = channel.unary_stream(f"/{SERVICE}/Attend")
        self.get_model = channel.unary_stream(f"/{SERVICE}/GetModel")
        self.send_update = channel.stream_stream(f"/{SERVICE}/SendUpdate")
        self.exchange_heads = channel.unary_unary(f"/{SERVICE}/ExchangeHeads")
        self.secure_stage = channel.unary_unary(f"/{SERVICE}/SecureStage")
        self.report_progress = channel.unary_unary(f"/{SERVICE}/ReportProgress")
        self.report_approval = channel.unary_unary(f"/{SERVICE}/ReportApproval")
        self.submit = channel.stream_stream(f"/{SERVICE}/Submit")
        self.get_history = channel.unary_stream(f"/{SERVICE}/GetHistory")
        self.get_experiment = channel.unary_unary(f"/{SERVICE}/GetExperiment")
        self.stop_experiment = channel.unary_unary(f"/{SERVICE}/StopExperiment")
        self.resume_experiment = channel.unary_unary(f"/{SERVICE}/ResumeExperiment")
        self.delete_experiment = channel.unary_unary(f"/{SERVICE}/DeleteExperiment")
        self.drop_envoy = channel.unary_unary(f"/{SERVICE}/DropEnvoy")
        self.get_log = channel.unary_stream(f"/{SERVICE}/GetLog")
        self.get_status = channel.unary_unary(f"/{SERVICE}/GetStatus")
