"""Waiting for something to change, in one event loop."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


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
            await within(seconds, self._next.wait())


async def within(seconds: float | None, work: Awaitable[Result]) -> Result:
    """Return the result of `work`, without end where `seconds` is None. Raises asyncio.TimeoutError.

    asyncio.wait_for does so, too. But in Python 3.11 and earlier it loses a cancellation that comes with the result:
    then a call whose client is gone goes on.
    """
    if seconds is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        task.cancel()
