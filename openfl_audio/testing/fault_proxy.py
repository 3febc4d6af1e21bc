"""A TCP proxy that breaks one connection, at a byte that the test chooses."""

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Literal

# Small, so that what a stalled connection has not taken over stays with its sender.
BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class Fault:
    """A fault of the first connection on which more than `after` bytes went one way.

    It is closed ("cut"), closed with a TCP reset ("reset"), or carries nothing any more in either direction ("stall").
    "up" is from who dials to the server.
    """

    kind: Literal["cut", "stall", "reset"]
    direction: Literal["up", "down"]
    after: int


class Proxy:
    """A context manager that forwards connections to `target_port` from `port`, until somebody pulls the plug."""

    def __init__(self, target_port: int) -> None:
        self.broken = threading.Event()
        self._target_port = target_port
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._pulled = False
        self._connections: list[_Connection] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in accept is woken by this, not by close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self._connections:
            connection.end()

    def arm(self, fault: Fault) -> None:
        """`fault` comes once; `broken` says that it came."""
        with self._lock:
            self._fault = fault
            self.broken.clear()

    def pull(self) -> None:
        """Let nothing through any more, and neither side know, as when a plug is pulled."""
        with self._lock:
            self._pulled = True
            for connection in self._connections:
                connection.stall()

    def plug(self) -> None:
        """End what `pull` began: new connections are forwarded again, and those of before are closed."""
        with self._lock:
            self._pulled = False
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections, so that both sides know."""
        with self._lock:
            for connection in self._connections:
                connection.cut()

    def take_fault(self, direction: str, n_bytes: int) -> Fault | None:
        """Return the armed fault if it is due on a connection that carried `n_bytes` one way; it is armed no more."""
        with self._lock:
            fault = self._fault
            if fault is None or fault.direction != direction or n_bytes <= fault.after:
                return None
            self._fault = None
            return fault

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except ConnectionRefusedError:
                client.close()
                continue
            except OSError:
                return
            with self._lock:
                self._connections.append(_Connection(self, client, server))
                if self._pulled:
                    self._connections[-1].stall()


class _Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._sockets = (client, server)
        self._stalled = threading.Event()
        self._resumed = threading.Event()
        self._broken = False  # one fault is enough, also while bytes of the other way are still on theirs
        self._reset = False
        ways = (("up", client, server), ("down", server, client))
        self._threads = [threading.Thread(target=self._pump, args=way) for way in ways]
        self._left = len(self._threads)
        self._lock = threading.Lock()
        for thread in self._threads:
            thread.start()

    def stall(self) -> None:
        self._stalled.set()

    def cut(self) -> None:
        self._resumed.set()
        self._shut_down(socket.SHUT_RDWR)

    def end(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()

    def _pump(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        n_bytes = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(BUFFER_BYTES):
                if self._stalled.is_set():
                    self._resumed.wait()
                    break
                n_bytes += len(piece)
                if not self._broken and (fault := self._proxy.take_fault(direction, n_bytes)):
                    self._broken = True
                    self._break(fault)
                    break
                sink.sendall(piece)
        if not self._reset:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._left -= 1
            if self._left == 0:
                for each in self._sockets:
                    each.close()

    def _break(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self._stalled.set()
            self._proxy.broken.set()
            self._resumed.wait()
            return
        if fault.kind == "reset":
            self._reset = True  # and no orderly end before it
            for each in self._sockets:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Wakes the other thread, and says nothing to the peers: the reset comes when both threads are done.
            self._shut_down(socket.SHUT_RD)
        else:
            self._shut_down(socket.SHUT_RDWR)
        self._proxy.broken.set()

    def _shut_down(self, how: int) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(how)
