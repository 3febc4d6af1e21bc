"""Pace of calls that cost the director time, however often they are made."""

import asyncio
import time


class Pace:
    """Turns of peers: each has one in `seconds`, and who asks sooner waits.

    How many calls of a peer wait is limited by how many it may have open.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next: dict[str, float] = {}

    async def turn(self, peer: str) -> None:
        """Wait for the next turn of `peer`."""
        now = time.monotonic()
        turn = max(now, self._next.get(peer, 0.0))
        # Whoever may call at once is forgotten: without TLS names are anything.
        self._next = {other: at for other, at in self._next.items() if at > now} | {peer: turn + self._seconds}
        await asyncio.sleep(turn - now)
