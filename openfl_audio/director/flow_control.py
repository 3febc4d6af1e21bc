"""How much may be on its way to and from the director at a time."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count

from openfl_audio.protocol.tensors import PIECE_BYTES

# Of all uploads together. One alone has so 100 MB/s on a line whose round trip takes 40 ms, and what a process holds
# for bytes in flight is some three times as much.
BYTES_ON_THE_WAY = 4 << 20
# With smaller pieces than this a transfer takes several times as long, however many go on at a time.
LEAST_PIECE_BYTES = 1 << 16


def piece_bytes(transfers: int) -> int:
    """Bytes of a piece where `transfers` go on at a time, so that each has two of them on its way."""
    return max(LEAST_PIECE_BYTES, min(PIECE_BYTES, BYTES_ON_THE_WAY // (2 * max(1, transfers))))


class Downloads:
    """Counts those that download at the moment, each of which holds a piece or two in memory."""

    def __init__(self) -> None:
        self._downloads = 0

    @contextmanager
    def piece_sizes(self) -> Iterator[Iterator[int]]:
        """Sizes for the pieces of one more download, without end."""
        self._downloads += 1
        try:
            yield (piece_bytes(self._downloads) for _ in count())
        finally:
            self._downloads -= 1


class Uploads:
    """Divides BYTES_ON_THE_WAY among those that upload at the moment.

    What arrives faster than it is written waits in memory. gRPC's windows would bound that, but they grow with the
    bytes that were in flight before, to tens of megabytes a connection on a fast line. So a piece is sent only
    with the director's leave. One that is slow or stalls keeps its share and nothing more: nobody waits for it.
    """

    def __init__(self) -> None:
        self.free = BYTES_ON_THE_WAY
        self._uploads = 0

    async def receive(
        self, pieces: AsyncIterator[bytes], give_leave: Callable[[int, int], Awaitable]
    ) -> AsyncGenerator[bytes, None]:
        """`pieces`, and on the way `give_leave(n, size)` for n more of them that have `size` bytes at most.

        Each upload always has leave for one at least. Close it (`contextlib.aclosing`) to give back what has not come.
        """
        expected: deque[int] = deque()
        self._uploads += 1
        try:
            while True:
                share, size = BYTES_ON_THE_WAY // self._uploads, piece_bytes(self._uploads)
                added = max(min(share - sum(expected), self.free) // size, 1 - len(expected))
                # Not for every piece: leave is a message, too.
                if added > 0 and sum(expected) <= share // 2:
                    expected.extend([size] * added)
                    self.free -= added * size
                    await give_leave(added, size)
                piece = await anext(pieces, None)
                if piece is None:
                    return
                # One that was sent without leave is written all the same.
                self.free += expected.popleft() if expected else 0
                yield piece
        finally:
            self._uploads -= 1
            self.free += sum(expected)
