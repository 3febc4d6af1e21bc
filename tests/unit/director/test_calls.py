import asyncio
import time
from collections import Counter

import pytest

from openfl_audio.director.calls import MAX_CALLS_PER_CERTIFICATE, Endable, OpenCalls
from openfl_audio.director.run_folder import Status
from openfl_audio.errors import CallEndedError, TooManyCallsError
from openfl_audio.protocol.certificates import Owner
from openfl_audio.protocol.messages import UpdateMessage
from openfl_audio.protocol.revocation import RevocationList
from openfl_audio.protocol.tensors import Header, stream
from tests.unit.director.toy_experiment import MODEL, TRAIN, make_experiment, play, results_of, serve, train, until

LATER = 4e9


def test_a_block_that_is_ended_from_elsewhere_says_why():
    async def story() -> None:
        blocks = []

        async def wait() -> None:
            with Endable() as block:
                blocks.append(block)
                await asyncio.sleep(60)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        blocks[0].end("enough")
        with pytest.raises(CallEndedError, match="enough"):
            await task

    asyncio.run(asyncio.wait_for(story(), 10))


def test_a_task_that_is_cancelled_by_itself_is_cancelled():
    async def story() -> None:
        async def wait() -> None:
            with Endable():
                await asyncio.sleep(60)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(story(), 10))


def test_one_certificate_has_so_many_calls_open_and_no_more_and_others_have_theirs():
    async def story() -> None:
        calls = OpenCalls(RevocationList(None))
        blocks = [calls.open(Owner("envoy 'a'", 1, LATER)) for _ in range(MAX_CALLS_PER_CERTIFICATE)]
        for block in blocks:
            block.__enter__()
        with (
            pytest.raises(TooManyCallsError, match="envoy 'a' has 64 calls open"),
            calls.open(Owner("envoy 'a'", 1, LATER)),
        ):
            pass
        with calls.open(Owner("envoy 'b'", 1, LATER)):
            pass
        blocks[0].__exit__(None, None, None)
        with calls.open(Owner("envoy 'a'", 1, LATER)):
            pass

    asyncio.run(story())


def test_the_end_of_a_call_is_as_much_work_however_many_others_are_open():
    class Looking(Counter):
        def items(self):
            raise AssertionError("looks at the calls of all others")

    async def story() -> None:
        calls = OpenCalls(RevocationList(None))
        calls._counts = Looking()
        with calls.open(Owner("envoy 'b'", 1, LATER)):
            with calls.open(Owner("envoy 'a'", 1, LATER)), calls.open(Owner("envoy 'a'", 1, LATER)):
                pass
            assert list(calls._counts) == ["envoy 'b'"]

    asyncio.run(story())


def test_a_call_ends_when_its_certificate_expires_although_nothing_happens_in_it(monkeypatch):
    monkeypatch.setattr("openfl_audio.director.calls.LOOK_SECONDS", 0.01)

    async def story() -> None:
        calls = OpenCalls(RevocationList(None))
        watching = asyncio.create_task(calls.watch())
        ended = pytest.raises(CallEndedError, match="the certificate of envoy 'a' expired on ")
        with ended, calls.open(Owner("envoy 'a'", 1, time.time() + 0.05)):
            await asyncio.sleep(60)
        with pytest.raises(CallEndedError, match="expired"), calls.open(Owner("envoy 'a'", 1, time.time() - 1)):
            pass
        watching.cancel()

    asyncio.run(asyncio.wait_for(story(), 10))


def test_an_update_that_never_ends_is_dropped_with_its_round(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN], participation={"deadline_seconds": 0.2})
    held = []

    async def hold() -> bool:
        tasks, _ = await experiment.scheduler.wait_for_tasks("b")
        update = UpdateMessage(experiment="toy", envoy="b", round=0, results=results_of("b", tasks, MODEL))
        header, *pieces = stream(train("b", 0, MODEL), update.model_dump())

        async def never_end():
            yield pieces[0][:10]
            held.append(True)
            await asyncio.sleep(60)

        return await experiment.intake.receive(update, Header.unpack(header), never_end())

    async def other() -> None:
        await until(lambda: bool(held))
        await serve(experiment, "a")

    assert play(experiment, hold(), other())[0] is False
    assert experiment.state.status is Status.FINISHED
    assert experiment.folder.history[0]["missing"] == ["b"]


def test_a_third_transfer_of_a_peer_takes_the_place_of_the_first(tmp_path):
    experiment = make_experiment(tmp_path)

    async def story() -> list[bool]:
        async def hold(seconds: float) -> bool:
            try:
                with experiment.transfers.open("download", "a"):
                    await asyncio.sleep(seconds)
            except CallEndedError:
                return False
            return True

        return await asyncio.gather(hold(60), hold(0.01), hold(0.01))

    assert asyncio.run(asyncio.wait_for(story(), 10)) == [False, True, True]
