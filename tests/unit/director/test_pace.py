import asyncio
import time

from openfl_audio.director.pace import Pace

PAUSE_S = 0.02


def test_who_asks_often_waits_and_holds_nobody_else_up():
    async def take(pace: Pace, peer: str, turns: int) -> tuple[float, float]:
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(pace.turn(peer) for _ in range(turns)))
        return time.monotonic() - began, time.process_time() - cpu

    async def run() -> None:
        pace = Pace(PAUSE_S)
        flood = asyncio.create_task(take(pace, "a", 20))
        await asyncio.sleep(0)
        assert (await take(pace, "b", 1))[0] < 5 * PAUSE_S
        seconds, cpu = await flood
        assert seconds >= 19 * PAUSE_S
        assert cpu < seconds / 2
        await asyncio.sleep(PAUSE_S)
        await pace.turn("c")
        assert list(pace._next) == ["c"], "nobody is kept in mind for ever"

    asyncio.run(run())
