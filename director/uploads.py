"""How much may be on its way to the director at a time."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

# Of all together: 4 MB. One alone has so 100 MB/s on a line whose round trip takes 40 ms, and what a process holds for
# bytes in flight is some three times as much.
PIECES_ON_THE_WAY = 16


class Uploads:
    """Divides `PIECES_ON_THE_WAY` among those that upload at the moment.

    What arrives faster than it is written waits in memory. gRPC's windows would bound that, but they grow with the
    bytes that were in flight before, to tens of megabytes a connection on a fast line. So a piece is sent only
    with the director's leave. One that is slow or stalls keeps its share and nothing more: nobody waits for it.
    """

    def __init__(self, pieces_on_the_way: int = PIECES_ON_THE_WAY) -> None:
        self.free = pieces_on_the_way
        self._pieces_on_the_way = pieces_on_the_way
        self._uploads = 0

    async def receive(
        self, pieces: AsyncIterator[bytes], give_leave: Callable[[int], Awaitable]
    ) -> AsyncGenerator[bytes, None]:
        """`pieces`, and on the way `give_leave(n)` for n more of them; each upload always has leave for one at least.

        Close it (`contextlib.aclosing`) to give back what has not come.
        """
        expected = 0
        self._uploads += 1
        try:
            while True:
                share = max(1, self._pieces_on_the_way // self._uploads)
                leave = max(min(share - expected, self.free), 1 - expected)
                # Not for every piece: leave is a message, too.
                if leave > 0 and expected <= share // 2:
                    expected += leave
                    self.free -= leave
                    await give_leave(leave)
                piece = await anext(pieces, None)
                if piece is None:
                    return
                # One that was sent without leave is written all the same.
                arrived = min(expected, 1)
                expected -= arrived
                self.free += arrived
                yield piece
        finally:
            self._uploads -= 1
            self.free += expected
