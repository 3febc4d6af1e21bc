import asyncio

from openfl_audio.director.notification import Changes


def test_a_wait_ends_with_the_next_change_or_after_its_seconds():
    async def story() -> None:
        changes = Changes()
        waiting = asyncio.create_task(changes.wait())
        await asyncio.sleep(0)
        changes.notify()
        await waiting
        await changes.wait(0.01)

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_cancellation_that_comes_with_a_change_is_not_lost():
    async def story() -> bool:
        changes = Changes()
        waiting = asyncio.create_task(changes.wait(60))
        await asyncio.sleep(0.01)
        changes.notify()
        await asyncio.sleep(0)  # what waits for the change is done, and the task has not heard of it yet
        waiting.cancel()
        await asyncio.wait([waiting], timeout=60)
        return waiting.cancelled()

    assert asyncio.run(story())
