import asyncio
import contextlib
import socket
import sys

import pytest

from openfl_audio.director.receiving import MAX_HELD_BYTES, Connections, bytes_brought, end_silent_lines, split_peer
from openfl_audio.errors import MessageTooLargeError


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4711", ("10.0.0.1", 4711)),
        ("ipv6:%5B::1%5D:4711", ("::1", 4711)),
        ("ipv6:[::1]:4711", ("::1", 4711)),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4711", ("10.0.0.1", 4711)),
        ("", None),
    ],
)
def test_a_peer_of_grpc_is_an_address_and_a_port(peer, address):
    assert split_peer(peer) == address


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much comes")
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_what_has_come_on_a_connection_is_known_before_it_is_read(family, host):
    try:
        listening = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listening as server:
        client = socket.create_connection(server.getsockname()[:2])
        line, _ = server.accept()
        with client, line:
            client.sendall(bytes(1000))
            line.recv(1)
            assert bytes_brought()[client.getsockname()[:2]] == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much comes")
def test_of_many_connections_those_end_that_never_said_enough(monkeypatch):
    monkeypatch.setattr("openfl_audio.director.receiving.SILENT_SECONDS", 0.1)

    async def story() -> None:
        served: asyncio.Queue[None] = asyncio.Queue()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while heard := await reader.read(99):
                writer.write(heard)
            await close(writer)
            served.put_nowait(None)

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        (silent, first), (other, second) = [await asyncio.open_connection(*address) for _ in range(2)]
        first.write(b"h")
        assert await asyncio.wait_for(silent.readexactly(1), 60) == b"h"
        second.write(b"hello" * 5)
        assert await asyncio.wait_for(other.readexactly(25), 60) == b"hello" * 5
        ending = asyncio.create_task(end_silent_lines(max_lines=1))
        assert await asyncio.wait_for(silent.read(), 60) == b""
        second.write(b"again")
        assert await asyncio.wait_for(other.readexactly(5), 60) == b"again"
        ending.cancel()
        for writer in (first, second):
            await close(writer)
            await asyncio.wait_for(served.get(), 60)
        server.close()
        await server.wait_closed()

    asyncio.run(story())


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and its socket with it: what the end of the loop leaves open is a fault of a later test."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def waits_for_message(connections: Connections, *looks: dict[tuple[str, int], int], accounted: tuple[int, ...] = ()):
    """Tell whether a call on the connection ("10.0.0.1", 1) of envoy 'a' still waits after these looks."""
    connection = connections.of("ipv4:10.0.0.1:1", "envoy 'a'")

    async def story() -> bool:
        async def wait() -> None:
            with connection.message():
                await asyncio.sleep(60)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        for n_bytes in accounted:
            connection.account(n_bytes)
        for look in looks:
            connections.look(look)
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        if done:
            with pytest.raises(MessageTooLargeError, match="envoy 'a' sends messages larger than any"):
                await waiting
        waiting.cancel()
        return not done

    return asyncio.run(story())


def test_a_call_ends_that_waits_for_more_than_a_message_may_have():
    assert waits_for_message(Connections(), {("10.0.0.1", 1): MAX_HELD_BYTES})
    assert not waits_for_message(Connections(), {("10.0.0.1", 1): 2 * MAX_HELD_BYTES})
    assert not waits_for_message(Connections(), {("10.0.0.1", 1): 30 << 20}, {("10.0.0.1", 1): 60 << 20})


def test_what_calls_have_got_is_not_held():
    frames = int(1.01 * (1 << 30))
    assert waits_for_message(Connections(), {("10.0.0.1", 1): frames}, accounted=(1 << 20,) * 1024)
    # It is no credit for later, either.
    looks = {("10.0.0.1", 1): 0}, {("10.0.0.1", 1): 2 * MAX_HELD_BYTES}
    assert not waits_for_message(Connections(), *looks, accounted=(1 << 30,))


def test_the_connections_of_one_peer_count_together_and_those_of_another_by_themselves():
    for owner, waits in (("envoy 'a'", False), ("envoy 'b'", True)):
        connections = Connections()
        connections.of("ipv4:10.0.0.1:2", owner)
        assert waits_for_message(connections, {("10.0.0.1", 1): 30 << 20, ("10.0.0.1", 2): 30 << 20}) is waits


def test_a_connection_that_is_gone_is_forgotten():
    connections = Connections()
    before = connections.of("ipv4:10.0.0.1:1", "envoy 'a'")
    connections.look({})
    assert connections.of("ipv4:10.0.0.1:1", "envoy 'a'") is not before
