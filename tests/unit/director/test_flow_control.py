"""Bytes on their way to the director: they are shared and bounded, and nobody waits for a slow sender."""

import asyncio
from collections import deque
from contextlib import aclosing

import pytest

from openfl_audio.director.flow_control import BYTES_IN_FLIGHT, LEAST_CHUNK_BYTES, Downloads, Uploads, chunk_bytes
from openfl_audio.protocol.tensors import CHUNK_BYTES


class Sender:
    """Sends `pieces` as fast as it has leave; while `stalled`, nothing of what it may send arrives."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.on_the_way: deque[int] = deque()  # bytes of each
        self.stalled = False
        self.most = 0
        self._news = asyncio.Event()

    @property
    def bytes_on_the_way(self) -> int:
        return sum(self.on_the_way)

    async def grant(self, pieces: int, size: int) -> None:
        assert pieces > 0
        sent = min(pieces, self.left)
        self.on_the_way += [size] * sent
        self.left -= sent
        self.most = max(self.most, self.bytes_on_the_way)
        self._news.set()

    def go_on(self) -> None:
        self.stalled = False
        self._news.set()

    async def arrivals(self):
        while self.left or self.on_the_way:
            while self.stalled or not self.on_the_way:
                self._news.clear()
                await self._news.wait()
            yield bytes(self.on_the_way.popleft())


async def receive(uploads: Uploads, sender: Sender, watched: list[Sender], most: list[int]) -> int:
    """Receive all chunks and return their number; `most` gets how many bytes of all `watched` were in flight."""
    received = 0
    async with aclosing(uploads.receive(sender.arrivals(), sender.grant)) as pieces:
        async for _ in pieces:
            received += 1
            most.append(sum(each.bytes_on_the_way for each in watched))
            await asyncio.sleep(0)
    return received


def test_one_alone_has_leave_for_all_there_is_and_gets_more_before_it_runs_out():
    async def run():
        uploads, sender, most = Uploads(), Sender(50), []
        assert await receive(uploads, sender, [sender], most) == 50
        assert sender.most == BYTES_IN_FLIGHT
        assert min(most[:40]) >= BYTES_IN_FLIGHT // 2 - CHUNK_BYTES
        assert uploads.free == BYTES_IN_FLIGHT

    asyncio.run(run())


@pytest.mark.parametrize("senders", [2, 3, 8, 20])
def test_many_at_once_have_no_more_on_their_way_than_one(senders):
    async def run():
        uploads, most = Uploads(), []
        all_senders = [Sender(30) for _ in range(senders)]
        received = await asyncio.gather(*(receive(uploads, each, all_senders, most) for each in all_senders))
        assert received == [30] * senders
        # Each always has leave for one, so that none waits for another; those that came first had larger ones.
        assert max(most) <= 3 * BYTES_IN_FLIGHT
        assert uploads.free == BYTES_IN_FLIGHT

    asyncio.run(run())


def test_nobody_waits_for_one_that_stalls_with_all_the_leave_there_is():
    async def run():
        uploads, stalled, other = Uploads(), Sender(30), Sender(30)
        stalled.stalled = True
        first = asyncio.create_task(receive(uploads, stalled, [stalled], []))
        await asyncio.sleep(0)
        assert uploads.free == 0
        assert await asyncio.wait_for(receive(uploads, other, [other], []), 10) == 30
        assert stalled.on_the_way
        stalled.go_on()
        assert await asyncio.wait_for(first, 10) == 30
        assert uploads.free == BYTES_IN_FLIGHT

    asyncio.run(run())


def test_an_upload_that_breaks_off_gives_back_what_did_not_come():
    async def run():
        uploads, broken, other = Uploads(), Sender(30), Sender(30)
        async with aclosing(uploads.receive(broken.arrivals(), broken.grant)) as pieces:
            await anext(pieces)
        assert uploads.free == BYTES_IN_FLIGHT
        await receive(uploads, other, [other], [])
        assert other.most == BYTES_IN_FLIGHT

    asyncio.run(run())


def test_pieces_that_come_without_leave_are_taken_and_counted_for_nobody_else():
    async def run():
        async def impatient():
            for _ in range(100):
                yield b"x"

        async def ignored(pieces: int, size: int) -> None:
            return

        uploads = Uploads()
        async with aclosing(uploads.receive(impatient(), ignored)) as pieces:
            assert len([piece async for piece in pieces]) == 100
        assert uploads.free == BYTES_IN_FLIGHT

    asyncio.run(run())


def test_the_more_transfers_there_are_the_smaller_their_pieces():
    assert [chunk_bytes(n) for n in (1, 2, 4, 8, 500)] == [
        CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES // 2, CHUNK_BYTES // 4, LEAST_CHUNK_BYTES,
    ]  # fmt: skip


def test_pieces_of_a_download_get_smaller_while_there_are_others():
    downloads = Downloads()
    with downloads.chunk_sizes() as sizes:
        assert next(sizes) == CHUNK_BYTES
        with downloads.chunk_sizes(), downloads.chunk_sizes(), downloads.chunk_sizes():
            assert next(sizes) == CHUNK_BYTES // 2
        assert next(sizes) == CHUNK_BYTES
