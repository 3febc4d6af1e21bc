"""What may be on its way to the director: shared, bounded, and nobody waits for a slow one."""

import asyncio
from collections import deque
from contextlib import aclosing

import pytest

from director.uploads import Uploads

BUDGET = 8


class Sender:
    """Sends `pieces` as fast as it has leave; while `stalled`, nothing of what it may send arrives."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.on_the_way: deque[bytes] = deque()
        self.stalled = False
        self.most = 0
        self._news = asyncio.Event()

    async def give_leave(self, pieces: int) -> None:
        assert pieces > 0
        sent = min(pieces, self.left)
        self.on_the_way += [b"x"] * sent
        self.left -= sent
        self.most = max(self.most, len(self.on_the_way))
        self._news.set()

    def go_on(self) -> None:
        self.stalled = False
        self._news.set()

    async def arrivals(self):
        while self.left or self.on_the_way:
            while self.stalled or not self.on_the_way:
                self._news.clear()
                await self._news.wait()
            yield self.on_the_way.popleft()


async def receive(uploads: Uploads, sender: Sender, watched: list[Sender], most: list[int]) -> int:
    """How many pieces came; `most` gets how many of all `watched` were on their way."""
    received = 0
    async with aclosing(uploads.receive(sender.arrivals(), sender.give_leave)) as pieces:
        async for _ in pieces:
            received += 1
            most.append(sum(len(each.on_the_way) for each in watched))
            await asyncio.sleep(0)
    return received


def test_one_alone_has_leave_for_all_there_is_and_gets_more_before_it_runs_out():
    async def run():
        uploads, sender, most = Uploads(BUDGET), Sender(50), []
        assert await receive(uploads, sender, [sender], most) == 50
        assert sender.most == BUDGET
        assert min(most[:40]) >= BUDGET // 2 - 1
        assert uploads.free == BUDGET

    asyncio.run(run())


@pytest.mark.parametrize("senders", [2, 3, 8, 20])
def test_many_at_once_have_no_more_on_their_way_than_one(senders):
    async def run():
        uploads, most = Uploads(BUDGET), []
        all_senders = [Sender(30) for _ in range(senders)]
        received = await asyncio.gather(*(receive(uploads, each, all_senders, most) for each in all_senders))
        assert received == [30] * senders
        # Each always has leave for one, so that none waits for another.
        assert max(most) <= BUDGET + senders
        assert uploads.free == BUDGET

    asyncio.run(run())


def test_nobody_waits_for_one_that_stalls_with_all_the_leave_there_is():
    async def run():
        uploads, stalled, other = Uploads(BUDGET), Sender(30), Sender(30)
        stalled.stalled = True
        first = asyncio.create_task(receive(uploads, stalled, [stalled], []))
        await asyncio.sleep(0)
        assert uploads.free == 0
        assert await asyncio.wait_for(receive(uploads, other, [other], []), 10) == 30
        assert stalled.on_the_way
        stalled.go_on()
        assert await asyncio.wait_for(first, 10) == 30
        assert uploads.free == BUDGET

    asyncio.run(run())


def test_an_upload_that_breaks_off_gives_back_what_did_not_come():
    async def run():
        uploads, broken, other = Uploads(BUDGET), Sender(30), Sender(30)
        async with aclosing(uploads.receive(broken.arrivals(), broken.give_leave)) as pieces:
            await anext(pieces)
        assert uploads.free == BUDGET
        await receive(uploads, other, [other], [])
        assert other.most == BUDGET

    asyncio.run(run())


def test_pieces_that_come_without_leave_are_taken_and_counted_for_nobody_else():
    async def run():
        async def impatient():
            for _ in range(100):
                yield b"x"

        async def ignored(_: int) -> None:
            return

        uploads = Uploads(BUDGET)
        async with aclosing(uploads.receive(impatient(), ignored)) as pieces:
            assert len([piece async for piece in pieces]) == 100
        assert uploads.free == BUDGET

    asyncio.run(run())
