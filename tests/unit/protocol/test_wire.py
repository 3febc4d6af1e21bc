import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from openfl_audio.address import EXEMPTION_VARIABLES, PROXY_VARIABLES, join_address
from openfl_audio.errors import WireError
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.messages import Counted, Credit
from openfl_audio.protocol.wire import channel_credentials, explain_unreachable, open_channel, send_chunks


class Call:
    """A call as gRPC makes it: a thread of its own takes pieces as long as there are any."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.sent: list[bytes] = []
        self.sent_with_credit: list[int] = []
        self._thread = threading.Thread(target=self._take, args=(pieces,), daemon=True)
        self._thread.start()

    def _take(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self.sent.append(piece)

    def __iter__(self) -> Iterator[bytes]:
        for credit, expected in ((Credit(chunks=3, chunk_bytes=10), 1), (Credit(chunks=2, chunk_bytes=7), 4)):
            deadline = time.monotonic() + 60
            while len(self.sent) < expected and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.05)  # for a piece too many, should one be sent
            self.sent_with_credit.append(len(self.sent))
            yield encode(credit)
        self._thread.join(60)
        yield encode(Counted(counted=True))

    def cancel(self) -> None:
        pass


def test_chunks_go_as_credit_is_granted_and_the_last_answer_is_returned():
    calls = []

    def call(pieces: Iterator[bytes]) -> Call:
        calls.append(Call(pieces))
        return calls[0]

    pieces = [b"the first, as it is", b"0123456789abcdef", b"x" * 10, b"0123456789abcd"]
    assert send_chunks(call, pieces) == Counted(counted=True)
    assert list(map(len, calls[0].sent)) == [len(pieces[0]), 10, 6, 10, 7, 7]
    assert b"".join(calls[0].sent) == b"".join(pieces)
    assert calls[0].sent_with_credit == [1, 4]


def test_an_upload_that_ends_without_an_answer_is_told(monkeypatch):
    class Silent(Call):
        def __iter__(self) -> Iterator[bytes]:
            yield encode(Credit(chunks=1, chunk_bytes=10))

    with pytest.raises(WireError, match="ended an upload without an answer"):
        send_chunks(Silent, [b"x"])


def test_nobody_waits_for_credit_after_the_call_has_ended():
    class Broken(Call):
        def __iter__(self) -> Iterator[bytes]:
            raise ConnectionError("gone")

    calls = []
    with pytest.raises(ConnectionError):
        send_chunks(lambda pieces: calls.append(Broken(pieces)) or calls[0], (b"x" for _ in range(2)))
    calls[0]._thread.join(60)
    assert not calls[0]._thread.is_alive()


@contextmanager
def serving(host: str, certificates: Path | None = None) -> Iterator[int]:
    """The port of a server that answers no call, with TLS if there are certificates."""
    server = grpc.server(ThreadPoolExecutor(1))
    if certificates is None:
        port = server.add_insecure_port(join_address(host, 0))
    else:
        own = load_credentials(certificates, "director")
        pair = [(own.private_key, own.certificate)]
        port = server.add_secure_port(join_address(host, 0), grpc.ssl_server_credentials(pair, own.root, True))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.fixture
def unreachable_proxy(monkeypatch):
    for name in EXEMPTION_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, "http://ada:secret@127.0.0.1:9")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_reached_although_a_proxy_is_set(unreachable_proxy, host):
    with serving("127.0.0.1") as port, open_channel(f"{host}:{port}", None) as channel:
        grpc.channel_ready_future(channel).result(30)


def test_a_director_behind_a_proxy_is_not_found_and_the_proxy_named(unreachable_proxy):
    with open_channel("192.0.2.7:50051", None) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/any/Call")(b"", timeout=30)
    sentence = explain_unreachable("192.0.2.7:50051", raised.value.details(), None)
    assert sentence.startswith(
        "cannot reach the director at 192.0.2.7:50051 through the proxy 127.0.0.1:9 (grpc_proxy)"
    )
    assert "no_proxy=192.0.2.7" in sentence
    assert "secret" not in sentence


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
@pytest.mark.parametrize("address", ["::1:{port}", "[::1]:{port}"])
def test_an_ipv6_address_is_reached_with_and_without_brackets(address):
    with serving("::1") as port, open_channel(address.format(port=port), None) as channel:
        grpc.channel_ready_future(channel).result(30)


def test_a_director_whose_certificate_is_for_other_names_is_told_apart_from_one_that_is_not_there(tmp_path):
    write_certificates(tmp_path, director_hosts=["fl.example.org"], envoys=["a"])
    own = load_credentials(tmp_path, "a")
    with serving("127.0.0.2", tmp_path) as port:
        with (
            open_channel(f"127.0.0.2:{port}", channel_credentials(own)) as channel,
            pytest.raises(grpc.RpcError) as raised,
        ):
            channel.unary_unary("/any/Call")(b"", timeout=30)
        sentence = explain_unreachable(f"127.0.0.2:{port}", raised.value.details(), own.root)
    assert sentence.endswith(
        "its certificate is for localhost, 127.0.0.1, ::1, fl.example.org, and not for 127.0.0.2; "
        "openfl-audio certificates make --director 127.0.0.2 --force, or request with --host 127.0.0.2, gets one that "
        "is"
    )
    gone = explain_unreachable(f"127.0.0.2:{port}", "Connection refused", own.root, "envoy")
    assert gone.endswith("(Connection refused): is it running there, and with TLS on like this envoy?")
