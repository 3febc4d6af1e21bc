"""Bytes that gRPC holds before a call gets them: an end to calls that bring too much, and to silent connections.

gRPC keeps a message until all of it is there, and only then compares its size with `grpc.max_receive_message_length`
(gRPC issue 43012): a client that sends gigabytes fills the memory first. Linux knows how many bytes a connection has
brought (tcp_info, tcp(7)); gRPC holds those of them that no call has received.
"""

import asyncio
import contextlib
import ipaddress
import os
import resource
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from openfl_audio.director.calls import Endable
from openfl_audio.errors import CallEndedError, MessageTooLargeError

# Bytes of all connections of one peer together. Messages have 8 MB at most, and a window's bytes may wait beside them.
MAX_HELD_BYTES = 48 << 20
LOOK_SECONDS = 0.05
# Connections are looked at only when the process has grown by so much: with hundreds it takes milliseconds.
LOOK_AFTER_BYTES = 16 << 20
# Beside its content, a message has frames of HTTP/2 and TLS, and the headers of its call.
FRAMES_SHARE = 1.02
HEADER_BYTES = 2048
# Other bytes of a peer: pings, and the flow control of HTTP/2 for what it receives.
OTHER_BYTES_PER_SECOND = 256 << 10
# Where tcp_info has tcpi_last_data_recv and tcpi_bytes_received.
LAST_DATA_OFFSET, BYTES_RECEIVED_OFFSET = 52, 128
SILENT_SECONDS = 1.5
# What HTTP/2 begins with (RFC 9113, 3.4); TLS begins with more.
LEAST_BYTES = 24


@dataclass
class Connection:
    """One connection of a client.

    Attributes:
        owner: the certificate or, without TLS, the machine that it belongs to.
        brought: bytes that it had brought at the last look.
        accounted: bytes since then that calls have received.
        held: bytes that gRPC holds.
        looked: the time of the last look.
        waiting: blocks that wait for a message of it.
    """

    owner: str
    brought: int = 0
    accounted: float = 0.0
    held: float = 0.0
    looked: float = field(default_factory=time.monotonic)
    waiting: set[Endable] = field(default_factory=set)

    @contextmanager
    def message(self) -> Iterator[None]:
        """Run a block that waits for a message. Raises MessageTooLargeError when too much comes of one."""
        try:
            with Endable() as block:
                self.waiting.add(block)
                try:
                    yield
                finally:
                    self.waiting.remove(block)
        except CallEndedError as error:
            raise MessageTooLargeError(str(error)) from None

    def account(self, n_bytes: int) -> None:
        """Note that a call has received a message of `n_bytes`."""
        self.accounted += FRAMES_SHARE * n_bytes + HEADER_BYTES

    def look(self, brought: int) -> None:
        """Note that `brought` bytes have come so far."""
        now = time.monotonic()
        other = OTHER_BYTES_PER_SECOND * (now - self.looked)
        self.held = max(0.0, self.held + brought - self.brought - self.accounted - other)
        self.brought, self.accounted, self.looked = brought, 0.0, now


class Connections:
    """The connections by which calls came."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}

    def of(self, peer: str, owner: str) -> Connection:
        """Return the connection from `peer`, as gRPC writes addresses, of an owner: a certificate or a machine."""
        return self._connections.setdefault(peer, Connection(owner))

    async def watch(self) -> None:
        """End calls that wait for more than a message may have, for ever. Only Linux tells how much comes."""
        least = bytes_resident()
        while sys.platform == "linux":
            await asyncio.sleep(LOOK_SECONDS)
            now = bytes_resident()
            if now - least > LOOK_AFTER_BYTES:
                self.look(bytes_brought())
                least = now
            least = min(least, now)

    def look(self, brought: dict[tuple[str, int], int]) -> None:
        """End calls of owners whose connections hold too much.

        `brought` is how many bytes have come so far, by address and port of the peer. Connections that are not in it
        are gone.
        """
        held: defaultdict[str, list[Connection]] = defaultdict(list)
        for peer, connection in list(self._connections.items()):
            address = split_peer(peer)
            if address is None or address not in brought:
                del self._connections[peer]
                continue
            connection.look(brought[address])
            held[connection.owner].append(connection)
        for owner, connections in held.items():
            if sum(connection.held for connection in connections) > MAX_HELD_BYTES:
                for connection in connections:
                    connection.held = 0.0
                    for block in list(connection.waiting):
                        block.end(f"{owner} sends messages larger than any that this director takes")


def bytes_resident() -> int:
    """Return how many bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def bytes_brought() -> dict[tuple[str, int], int]:
    """Return how many bytes have come so far on each connection of this process, by address and port of the peer."""
    return {address: brought for _, address, brought, _ in lines()}


async def end_silent_lines(max_lines: int) -> None:
    """While more than half of `max_lines` are open, end those that have not even brought a greeting, for ever.

    A client that means to say something begins with it at once. A handshake that has begun has longer.
    """
    while sys.platform == "linux":
        await asyncio.sleep(1.0)
        if sum(1 for _ in Path("/proc/self/fd").iterdir()) > max_lines / 2:
            for line, _, brought, seconds in lines():
                if brought < LEAST_BYTES and seconds > SILENT_SECONDS:
                    line.shutdown(socket.SHUT_RDWR)


def lines() -> Iterator[tuple[socket.socket, tuple[str, int], int, float]]:
    """Yield connections of this process: a socket, its peer, bytes that have come, and seconds since the last of them.

    A peer is an address and a port.
    """
    for entry in Path("/proc/self/fd").iterdir():
        # What has been closed meanwhile, and what is no connection.
        with contextlib.suppress(OSError):
            if not entry.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as line:
                if line.family in (socket.AF_INET, socket.AF_INET6):
                    address, port, *_ = line.getpeername()
                    info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED_OFFSET + 8)
                    (brought,) = struct.unpack_from("Q", info, BYTES_RECEIVED_OFFSET)
                    (milliseconds,) = struct.unpack_from("I", info, LAST_DATA_OFFSET)
                    yield line, (plain(address), port), brought, milliseconds / 1000


def split_peer(peer: str) -> tuple[str, int] | None:
    """Return address and port of "ipv4:10.0.0.1:4711" or "ipv6:%5B::1%5D:4711".

    Of a peer that is gone already, gRPC gives "", and the result is None.
    """
    address, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return (plain(address.strip("[]")), int(port)) if port else None


def plain(address: str) -> str:
    """Return an address as text; an IPv4 address in an IPv6 socket is the same as by itself."""
    found = ipaddress.ip_address(address)
    return str(getattr(found, "ipv4_mapped", None) or found)
