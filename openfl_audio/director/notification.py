"""Waiting for something to change, in one event loop."""

import asyncio
import contextlib


class Changes:
    """Notification of changes: a waiting task is woken by the next `notify`, and then checks what has changed.

    No lock belongs to it, as to asyncio.Condition: between two awaits nothing else runs.
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake all tasks that wait."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until the next change, or for `seconds`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._next.wait(), seconds)
