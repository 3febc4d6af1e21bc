"""Cost of moving a round's bytes by itself, without a federation: over bare gRPC, and over bare sockets.

A server has a model in a file. In a round all clients fetch it at once, each into a file of its own, and send that back
into a file at the server, in pieces as large as this project's. Server and clients are processes. Nobody looks at the
bytes, and nothing is synced.
"""

import contextlib
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from benchmarks.rounds_peers.measure import BenchmarkError
from openfl_audio.protocol.tensors import CHUNK_BYTES
from openfl_audio.protocol.wire import CHANNEL_OPTIONS

GO, DONE = b"go", b"done"


def measure(line: str, size: int, clients: int, rounds: int, folder: Path) -> list[float]:
    """Seconds of each round over `line`, one of LINES, that moves a model of `size` bytes.

    Left out is a first round, which makes the files: as those of a federation, they are written over in the next one.
    """
    serve, take_part = LINES[line]
    model = folder / "model"
    write_pieces(model, (b"\1" * n for n in sizes_of_pieces(size)))  # no file with holes: reading those costs nothing
    with ExitStack() as stack:
        server = stack.enter_context(_process(serve, model, clients))
        port = server.recv()
        fetching = [stack.enter_context(_process(take_part, folder / str(n), port, size)) for n in range(clients)]
        seconds = [_round(fetching) for _ in range(rounds + 1)]
    for path in folder.iterdir():
        if path.stat().st_size != size:
            raise BenchmarkError(f"bare {line} left {path.stat().st_size} bytes in place of {size} in {path.name}")
    return seconds[1:]


@contextlib.contextmanager
def _process(work: Callable, *arguments: object) -> Iterator[Connection]:
    """The line to a process that does `work(line, *arguments)`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def _round(fetching: list[Connection]) -> float:
    began = time.monotonic()
    for line in fetching:
        line.send(GO)
    for line in fetching:
        line.recv()
    return time.monotonic() - began


def sizes_of_pieces(size: int) -> Iterator[int]:
    """Yield the sizes of the pieces that `size` bytes are sent in."""
    for start in range(0, size, CHUNK_BYTES):
        yield min(CHUNK_BYTES, size - start)


def read_pieces(path: Path) -> Iterator[bytes]:
    """Yield the pieces of a file."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write pieces over what the file holds, which is made if it is not there."""
    path.touch()
    with path.open("r+b", buffering=0) as file:
        for piece in pieces:
            file.write(piece)


def update_of(model: Path, client: str) -> Path:
    """Return the file beside the model that a client's update is written to."""
    return model.with_name(f"{client}.update")


def serve_grpc(line: Connection, model: Path, clients: int) -> None:
    """Serve the model over gRPC and take the updates of `clients`; the port goes to `line`."""

    def fetch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        return read_pieces(model)

    def send(pieces: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        write_pieces(update_of(model, next(pieces).decode()), pieces)
        return b""

    server = grpc.server(ThreadPoolExecutor(clients), options=CHANNEL_OPTIONS)
    handlers = {
        "Fetch": grpc.unary_stream_rpc_method_handler(fetch),
        "Send": grpc.stream_unary_rpc_method_handler(send),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    line.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def take_part_over_grpc(line: Connection, path: Path, port: int, size: int) -> None:
    """Fetch the model into `path` and send it back over gRPC, in each round that `line` begins."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", CHANNEL_OPTIONS)
    fetch, send = channel.unary_stream("/floor/Fetch"), channel.stream_unary("/floor/Send")

    def named_pieces() -> Iterator[bytes]:
        yield path.name.encode()
        yield from read_pieces(path)

    while line.recv() == GO:
        write_pieces(path, fetch(b""))
        send(named_pieces())
        line.send(DONE)


def serve_sockets(line: Connection, model: Path, clients: int) -> None:
    """Serve the model over plain sockets and take the updates of `clients`; the port goes to `line`."""

    def serve(client: str, connection: socket.socket) -> None:
        while connection.recv(1):
            for piece in read_pieces(model):
                connection.sendall(piece)
            write_pieces(update_of(model, client), received(connection, model.stat().st_size))
            connection.sendall(b"\1")

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(clients) as pool:
        line.send(listening.getsockname()[1])
        for client in range(clients):
            pool.submit(serve, str(client), listening.accept()[0])


def take_part_over_sockets(line: Connection, path: Path, port: int, size: int) -> None:
    """Fetch the model into `path` and send it back over a plain socket, in each round that `line` begins."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while line.recv() == GO:
            connection.sendall(b"\1")
            write_pieces(path, received(connection, size))
            for piece in read_pieces(path):
                connection.sendall(piece)
            connection.recv(1)
            line.send(DONE)


def received(connection: socket.socket, size: int) -> Iterator[memoryview]:
    """Yield `size` bytes of a connection as they come. Raises ConnectionError if it ends before."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while size:
        count = connection.recv_into(buffer, min(size, CHUNK_BYTES))
        if not count:
            raise ConnectionError(f"{size} bytes are missing")
        size -= count
        yield buffer[:count]


LINES = {"grpc": (serve_grpc, take_part_over_grpc), "sockets": (serve_sockets, take_part_over_sockets)}
