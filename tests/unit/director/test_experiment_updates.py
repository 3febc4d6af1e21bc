import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from openfl_audio.director.notification import Changes
from openfl_audio.director.run import Phase
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.errors import TensorFormatError, UpdateRefusedError
from openfl_audio.protocol.messages import TaskResult, UpdateEnvelope, UpdateMessage
from openfl_audio.protocol.tensors import Header, TensorFile, Tensors, stream
from tests.unit.director.toy_experiment import (
    MODEL,
    TRAIN,
    answer,
    assert_model,
    global_model,
    make_experiment,
    next_model,
    play,
    results_of,
    send,
    serve,
    train,
    until,
)

BAD_UPDATES: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "NaN": (lambda t: t | {"weight": t["weight"] * np.float32("nan")}, {}, "tensor 'weight' holds NaN or infinity"),
    "infinity": (
        lambda t: t | {"weight": t["weight"] + np.float32("inf")},
        {},
        "tensor 'weight' holds NaN or infinity",
    ),
    "a wrong shape": (lambda t: t | {"weight": t["weight"].T}, {}, r"'weight' is float32\(4, 3\), not float32\(3, 4\)"),
    "a wrong type": (lambda t: t | {"weight": t["weight"].astype(float)}, {}, "'weight' is float64"),
    "a tensor too few": (lambda t: {"weight": t["weight"]}, {}, r"tensors missing \['steps'\]"),
    "a tensor too many": (lambda t: t | {"extra": t["steps"]}, {}, r"unknown \['extra'\]"),
    "bytes too many": (lambda t: t, {"extra": b"more"}, "larger than the 56 bytes of its tensors"),
    "no clips": (lambda t: t, {"results": {"train": {"size": 0, "metrics": {}}}}, "trained on 0 clips"),
}


@pytest.mark.parametrize("fault", BAD_UPDATES)
def test_a_bad_update_is_refused_while_the_good_one_counts(tmp_path, fault):
    change, faults, sentence = BAD_UPDATES[fault]
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN])

    async def bad() -> None:
        tasks, round_number = await experiment.scheduler.wait_for_tasks("b")
        tensors = change(train("b", round_number, global_model(experiment)[0]))
        results = faults.get("results") or results_of("b", tasks, MODEL)
        results = {name: TaskResult.model_validate(result) for name, result in results.items()}
        rest = {key: value for key, value in faults.items() if key != "results"}
        with pytest.raises(UpdateRefusedError, match=rf"^update of envoy 'b' for round 0: .*{sentence}"):
            await send(experiment, "b", round_number, tensors, results, **rest)
        assert (await send(experiment, "b", 0, train("b", 0, MODEL), results_of("b", tasks, MODEL))) is False

    async def good_after_bad() -> None:
        await until(lambda: bool(experiment.rounds.refused))
        await serve(experiment, "a")

    play(experiment, bad(), good_after_bad())
    assert experiment.state.status is Status.FINISHED
    record = experiment.folder.history[0]
    assert sentence.split("\\")[0] in record["refused"]["b"]
    assert list(record["envoys"]) == ["a"]
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "a", 0))


def test_of_a_refusal_that_quotes_much_the_history_keeps_the_beginning(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN])

    async def bad() -> None:
        with pytest.raises(UpdateRefusedError, match="unknown"):
            await answer(experiment, "b", lambda tensors: tensors | {"n" * 100_000: tensors["steps"]})

    play(experiment, serve(experiment, "a"), bad())
    reason = experiment.folder.history[0]["refused"]["b"]
    assert reason.startswith("tensors missing [], unknown ['nnn")
    assert len(reason) == 500


def test_when_all_updates_are_refused_the_experiment_fails_with_the_reasons(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def bad(envoy: str) -> None:
        with pytest.raises(UpdateRefusedError):
            await answer(experiment, envoy, lambda tensors: tensors | {"weight": tensors["weight"] * np.float32("nan")})

    play(experiment, bad("a"), bad("b"))
    assert experiment.state.status is Status.FAILED
    for envoy in "ab":
        sentence = f"envoy '{envoy}': tensor 'weight' holds NaN or infinity"
        assert sentence in experiment.state.error
    assert_model(experiment.folder.named_model("last"), MODEL)
    assert RunFolder.load(experiment.folder.path).state.status is Status.FAILED


def test_an_update_for_a_round_to_come_is_refused_and_the_envoy_may_still_answer(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def hasty() -> None:
        tasks, _ = await experiment.scheduler.wait_for_tasks("a")
        with pytest.raises(UpdateRefusedError, match="for round 1: round 0 asks for"):
            await send(experiment, "a", 1, train("a", 0, MODEL), results_of("a", tasks, MODEL))
        await serve(experiment, "a")

    play(experiment, hasty(), serve(experiment, "b"))
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_an_update_of_nobody_who_was_asked_is_refused_and_the_round_goes_on(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def stranger() -> None:
        tasks, _ = await experiment.scheduler.wait_for_tasks("a")
        with pytest.raises(UpdateRefusedError, match="round 0 asks for nothing from it"):
            await send(experiment, "c", 0, train("c", 0, MODEL), results_of("c", tasks, MODEL))
        await serve(experiment, "a")

    play(experiment, stranger(), serve(experiment, "b"))
    assert experiment.folder.history[0]["refused"] == {}
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_a_late_update_is_dropped_without_a_word(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"deadline_seconds": 0.1})

    async def late() -> bool:
        tasks, _ = await experiment.scheduler.wait_for_tasks("b")
        await until(lambda: experiment.rounds.round_number == 1)
        return await send(experiment, "b", 0, train("b", 0, MODEL), results_of("b", tasks, MODEL))

    _, counted = play(experiment, serve(experiment, "a"), late())
    assert counted is False
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "a", 0))


def test_an_update_that_arrives_twice_at_once_counts_once(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN])

    async def twice() -> list[bool]:
        tasks, _ = await experiment.scheduler.wait_for_tasks("a")
        update = train("a", 0, MODEL)
        return await asyncio.gather(
            *[send(experiment, "a", 0, update, results_of("a", tasks, MODEL)) for _ in range(2)]
        )

    counted, _ = play(experiment, twice(), serve(experiment, "b"))
    assert sorted(counted) == [False, True]
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_an_update_that_breaks_off_leaves_nothing_behind_and_may_be_sent_again(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN])

    async def broken() -> None:
        tasks, _ = await experiment.scheduler.wait_for_tasks("a")
        update = UpdateMessage(experiment="toy", envoy="a", round=0, results=results_of("a", tasks, MODEL))
        header, *pieces = stream(train("a", 0, MODEL), update.model_dump())

        async def break_off() -> AsyncIterator[bytes]:
            yield pieces[0][:10]
            raise asyncio.CancelledError  # as gRPC ends the call of an envoy that is gone

        with pytest.raises(asyncio.CancelledError):
            await experiment.intake.receive(update, Header.unpack(header), break_off())
        (path,) = experiment.folder.updates()
        with pytest.raises(TensorFormatError):
            TensorFile(path)
        await serve(experiment, "a")

    play(experiment, broken(), serve(experiment, "b"))
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_an_update_that_cannot_be_kept_for_good_ends_the_experiment_with_the_reason(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN])

    async def unlucky() -> bool:
        tasks, _ = await experiment.scheduler.wait_for_tasks("a")
        (experiment.folder.path / "updates").rmdir()
        return await send(experiment, "a", 0, train("a", 0, MODEL), results_of("a", tasks, MODEL))

    assert play(experiment, unlucky()) == [False]
    assert experiment.state.status is Status.FAILED
    assert experiment.state.error.startswith("the director cannot read or write: [Errno ")


def test_in_float16_what_it_cannot_hold_is_refused_by_name(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, precision="float16", tasks=[TRAIN])

    async def too_large() -> None:
        with pytest.raises(UpdateRefusedError, match="tensor 'weight' holds NaN or infinity"):
            await answer(experiment, "b", lambda tensors: tensors | {"weight": np.full((3, 4), np.inf, np.float16)})

    play(experiment, serve(experiment, "a"), too_large())
    assert experiment.state.status is Status.FINISHED


def test_in_float16_an_update_in_float32_is_refused(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, precision="float16", tasks=[TRAIN])

    async def wide() -> None:
        with pytest.raises(UpdateRefusedError, match=r"'weight' is float32\(3, 4\), not float16\(3, 4\)"):
            await answer(experiment, "b", lambda tensors: tensors | {"weight": tensors["weight"].astype(np.float32)})

    play(experiment, serve(experiment, "a"), wide())


def test_a_round_wakes_none_of_those_whose_turn_it_is_not(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path, rounds=4, members="abcd", tasks=[TRAIN], participation={"count": 1})
    woken: list[Changes] = []
    notify = Changes.notify
    monkeypatch.setattr(Changes, "notify", lambda changes: woken.append(changes) or notify(changes))
    rounds = play(experiment, *(serve(experiment, envoy) for envoy in "abcd"))
    assert sum(map(len, rounds)) == 4
    of_envoys = [changes for changes in woken if changes not in (experiment.news, experiment.answered)]
    assert len(of_envoys) <= 4 + len("abcd"), "one a round, and all at the end"


def test_an_answer_wakes_none_of_those_that_wait_for_their_next_task(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path, rounds=1, members="abcd", tasks=[TRAIN])
    looked: list[str] = []
    tasks_for = experiment.rounds.tasks_for
    monkeypatch.setattr(experiment.rounds, "tasks_for", lambda envoy: looked.append(envoy) or tasks_for(envoy))

    async def story() -> None:
        await answer(experiment, "a")
        waiting = asyncio.create_task(experiment.scheduler.wait_for_tasks("a"))
        await asyncio.sleep(0)
        looked.clear()
        await answer(experiment, "b")
        await answer(experiment, "c")
        await asyncio.sleep(0.01)
        assert "a" not in looked
        await answer(experiment, "d")
        await waiting

    play(experiment, story())


def test_updates_of_the_round_are_welcome_while_it_is_open_and_dropped_before_and_after(tmp_path):
    async def story() -> None:
        experiment = make_experiment(tmp_path)
        update = UpdateEnvelope(experiment="toy", envoy="a", round=0, results={})
        phases = []

        def note() -> None:
            phases.append((experiment.phase, experiment.intake.is_dropped(update)))

        experiment.rounds.open("ab")
        note()
        experiment.open_round()
        note()
        experiment.close_round()
        note()
        experiment.stop()
        note()
        assert phases == [(Phase.CLOSED, True), (Phase.OPEN, False), (Phase.CLOSED, True), (Phase.ENDED, True)]

    asyncio.run(story())
