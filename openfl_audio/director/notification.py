"""Waiting for something to change, in one event loop."""

import asyncio
import contextlib


class Changes:
    """Whoever waits is woken by the next `notify`, and then looks for itself at what has changed.

    No lock goes with it, as with asyncio.Condition: between two awaits nothing else runs.
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Until the next change, or for `seconds`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._next.wait(), seconds)
