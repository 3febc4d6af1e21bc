"""Flow control: how much may be in flight to and from the director at a time."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count

from openfl_audio.protocol.tensors import CHUNK_BYTES

# All uploads together. A single one thus reaches 100 MB/s on a line whose round trip takes 40 ms, and what a process
# holds for bytes in flight is some three times as much.
BYTES_IN_FLIGHT = 4 << 20
# With smaller chunks than this a transfer takes several times as long, however many run at a time.
LEAST_CHUNK_BYTES = 1 << 16


def chunk_bytes(transfers: int) -> int:
    """Return the bytes of a chunk where `transfers` run at a time, so that each has two of them in flight."""
    return max(LEAST_CHUNK_BYTES, min(CHUNK_BYTES, BYTES_IN_FLIGHT // (2 * max(1, transfers))))


class Downloads:
    """Counter of running downloads, each of which holds a chunk or two in memory."""

    def __init__(self) -> None:
        self._downloads = 0

    @contextmanager
    def chunk_sizes(self) -> Iterator[Iterator[int]]:
        """Yield sizes for the chunks of one more download, without end."""
        self._downloads += 1
        try:
            yield (chunk_bytes(self._downloads) for _ in count())
        finally:
            self._downloads -= 1


class Uploads:
    """Credit-based flow control, which divides BYTES_IN_FLIGHT among the running uploads.

    What arrives faster than it is written waits in memory. gRPC's windows would bound that, but they grow with the
    bytes that were in flight before, to tens of megabytes a connection on a fast line. So a chunk is sent only with the
    director's credit. An upload that is slow or stalls keeps its share and nothing more: others do not wait for it.
    """

    def __init__(self) -> None:
        self.free = BYTES_IN_FLIGHT
        self._uploads = 0

    async def receive(
        self, chunks: AsyncIterator[bytes], grant: Callable[[int, int], Awaitable]
    ) -> AsyncGenerator[bytes, None]:
        """Yield `chunks`, and call `grant(n, size)` when there is room for n more of at most `size` bytes.

        Each upload always has credit for one chunk at least. Close the generator (`contextlib.aclosing`) to give back
        credit that was not used.
        """
        expected: deque[int] = deque()
        self._uploads += 1
        try:
            while True:
                share, size = BYTES_IN_FLIGHT // self._uploads, chunk_bytes(self._uploads)
                added = max(min(share - sum(expected), self.free) // size, 1 - len(expected))
                # Not for every chunk: credit is a message, too.
                if added > 0 and sum(expected) <= share // 2:
                    expected.extend([size] * added)
                    self.free -= added * size
                    await grant(added, size)
                chunk = await anext(chunks, None)
                if chunk is None:
                    return
                # A chunk sent without credit is still accepted; it returns no credit to the pool.
                self.free += expected.popleft() if expected else 0
                yield chunk
        finally:
            self._uploads -= 1
            self.free += sum(expected)
