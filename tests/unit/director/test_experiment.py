import asyncio
import contextlib
import json
import time
from itertools import repeat

import numpy as np
import pytest

from openfl_audio.director.live import SILENT_INTERVALS, UNWATCHED_SECONDS, WATCHED_SECONDS, Live
from openfl_audio.director.run import Phase
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.protocol.codec import decode_history
from openfl_audio.protocol.messages import EnvoyProgress, ExperimentSummary, LiveRound, ProgressReport, RoundRecord
from openfl_audio.protocol.plan import Task
from tests.unit.director.toy_experiment import (
    CLIPS,
    MODEL,
    QUORUM_OF_TWO,
    SECONDS,
    TRAIN,
    VALIDATE,
    answer,
    assert_model,
    global_model,
    load,
    make_experiment,
    next_model,
    nothing,
    play,
    results_of,
    score_of,
    send,
    serve,
    train,
    until,
)


def test_two_rounds_are_numpys(tmp_path):
    experiment = make_experiment(tmp_path, rounds=2, also_best={"score": "min"})
    assert play(experiment, serve(experiment, "a"), serve(experiment, "b")) == [[0, 1, 2], [0, 1, 2]]
    models = [MODEL]
    for round_number in range(2):
        models.append(next_model(models[-1], "ab", round_number))
    folder = experiment.folder
    assert experiment.state.status is Status.FINISHED
    assert_model(folder.named_model("last"), models[2])
    assert_model(folder.named_model("initial"), MODEL)
    scores = [
        (score_of("a", m) * CLIPS["a"] + score_of("b", m) * CLIPS["b"]) / (CLIPS["a"] + CLIPS["b"]) for m in models
    ]
    found = [record["metrics"]["aggregated_model_validate"]["score"] for record in folder.history]
    assert found == pytest.approx(scores, rel=1e-12)
    assert [record["best"] for record in folder.history] == [
        all(score > other for other in scores[:index]) for index, score in enumerate(scores)
    ]
    assert_model(folder.named_model("best"), models[int(np.argmax(scores))])
    assert_model(folder.named_model("best-score"), models[int(np.argmin(scores))])
    assert [set(record["metrics"]) for record in folder.history] == [{VALIDATE.name, "train"}] * 2 + [{VALIDATE.name}]
    assert list((folder.path / "updates").iterdir()) == []
    assert list((folder.path / "tensorboard").iterdir()) != []
    assert RunFolder.load(folder.path).state == experiment.state


def test_a_record_says_what_travelled_and_how_long_it_took(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    first, last = experiment.folder.history
    data_bytes = sum(tensor.nbytes for tensor in MODEL.values())
    assert first["bytes_up"] == 2 * data_bytes, "the call adds the headers"
    assert 2 * data_bytes < first["bytes_down"] < 2 * data_bytes + 2000
    assert last["bytes_up"] == 0, "no tensor comes with a validation"
    assert 0 <= first["seconds"] < SECONDS


def test_a_record_on_disk_is_the_message_that_notebooks_get(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 0.3})
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    record = experiment.folder.history[0]
    assert record["missing"] == ["c"]
    message = decode_history(experiment.folder.history.line(0))
    assert isinstance(message, RoundRecord)
    assert message.model_dump() == record
    assert type(message.envoys["a"]["train"]["size"]) is int


def test_an_experiment_that_only_validates_leaves_the_model_alone(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[VALIDATE])
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    assert_model(experiment.folder.named_model("last"), MODEL)
    assert len(experiment.folder.history) == 2


def test_after_the_deadline_a_round_closes_with_a_quorum_and_without_the_rest(tmp_path):
    experiment = make_experiment(
        tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 0.3, "quorum": 2}
    )
    play(experiment, serve(experiment, "a"), serve(experiment, "c"))
    assert experiment.state.status is Status.FINISHED
    assert [record["missing"] for record in experiment.folder.history] == [["b"], ["b"]]
    assert all(record["seconds"] >= 0.3 for record in experiment.folder.history)
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ac", 0))


def test_when_all_have_answered_nobody_waits_for_the_deadline(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"deadline_seconds": 1000})
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    assert experiment.folder.history[0]["missing"] == []


def test_short_of_its_quorum_a_round_stays_open_after_the_deadline(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"deadline_seconds": 0.1, "quorum": 2})

    async def late() -> None:
        await until(lambda: bool(experiment.rounds.results))
        await asyncio.sleep(0.3)
        assert experiment.rounds.round_number == 0
        assert experiment.view.summary().waiting_for == ["b"]
        await serve(experiment, "b")

    play(experiment, serve(experiment, "a"), late())
    assert experiment.state.status is Status.FINISHED
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_with_a_deadline_only_those_are_asked_who_are_there(tmp_path):
    experiment = make_experiment(
        tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 1000}, is_online=lambda e: e != "c"
    )
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    assert experiment.folder.history[0]["missing"] == []
    assert set(experiment.folder.history[0]["envoys"]) == {"a", "b"}


def test_without_a_deadline_all_members_are_asked_whoever_is_there(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, is_online=lambda _: False)
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    assert set(experiment.folder.history[0]["envoys"]) == {"a", "b"}


def test_when_fewer_are_there_than_the_quorum_the_round_waits_for_more(tmp_path):
    online = {"a"}
    experiment = make_experiment(
        tmp_path,
        rounds=1,
        participation={"deadline_seconds": 0.1, "quorum": 2},
        is_online=lambda envoy: envoy in online,
    )

    async def late() -> None:
        await until(lambda: bool(experiment.rounds.results))
        await asyncio.sleep(0.2)
        online.add("b")
        await serve(experiment, "b")

    play(experiment, serve(experiment, "a"), late())
    assert (experiment.state.status, experiment.state.error) == (Status.FINISHED, "")


def test_an_evaluator_makes_up_no_quorum_and_the_round_waits_for_a_trainer(tmp_path):
    online = {"b"}
    experiment = make_experiment(
        tmp_path,
        rounds=1,
        participation={"deadline_seconds": 0.1, "evaluators": ["b"]},
        is_online=lambda envoy: envoy in online,
    )

    async def late() -> None:
        await until(lambda: experiment.scheduler.seconds_open > 0.2 and bool(experiment.rounds.results))
        assert experiment.view.summary().waiting_for == ["a"]
        online.add("a")
        await serve(experiment, "a")

    play(experiment, serve(experiment, "b"), late())
    assert experiment.state.status is Status.FINISHED
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "a", 0))


def test_the_last_model_is_validated_by_fewer_evaluators_than_a_quorum_of_updates(tmp_path):
    participation = QUORUM_OF_TWO | {"evaluators": ["c"]}
    experiment = make_experiment(tmp_path, rounds=1, members="abc", participation=participation)
    play(experiment, *(serve(experiment, envoy) for envoy in "abc"))
    assert (experiment.state.status, experiment.state.error) == (Status.FINISHED, "")
    assert list(experiment.folder.history[-1]["envoys"]) == ["c"]


def test_rounds_that_ask_nobody_leave_others_their_turn(tmp_path):
    experiment = make_experiment(tmp_path, rounds=100, tasks=[VALIDATE], participation={"validate_every": 100})
    seen = []

    async def look() -> None:
        await answer(experiment, "a")
        await answer(experiment, "b")
        while experiment.rounds.round_number < 100:
            seen.append(experiment.rounds.round_number)
            await asyncio.sleep(0)
        await asyncio.gather(serve(experiment, "a"), serve(experiment, "b"))

    play(experiment, look())
    assert len(set(seen)) > 90


def test_a_stop_ends_all_waiting_at_once_and_keeps_history_and_models(tmp_path):
    experiment = make_experiment(tmp_path, rounds=9)

    async def stop() -> None:
        await until(lambda: experiment.rounds.round_number == 1 and "a" in experiment.rounds.results)
        experiment.stop()

    async def b_answers_once() -> tuple[list[Task], int]:
        await answer(experiment, "b")
        await until(lambda: experiment.ended)
        return await experiment.scheduler.wait_for_tasks("c")

    async def history() -> list[int]:
        return [json.loads(line)["round"] async for line in experiment.view.history()]

    started = time.monotonic()
    _, _, (tasks, _), seen = play(experiment, stop(), serve(experiment, "a"), b_answers_once(), history())
    assert time.monotonic() - started < 10, "half of a long poll"
    assert (tasks, seen) == ([], [0])
    assert RunFolder.load(experiment.folder.path).state.status is Status.STOPPED
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))
    assert list((experiment.folder.path / "updates").iterdir()) == []


def test_a_stop_before_the_first_round_is_a_stop(tmp_path):
    experiment = make_experiment(tmp_path)

    async def stop_at_once() -> None:
        task = asyncio.create_task(experiment.scheduler.run(nothing))
        experiment.stop()
        await asyncio.wait_for(task, SECONDS)

    with contextlib.suppress(asyncio.TimeoutError):
        asyncio.run(stop_at_once())
    assert experiment.state.status is Status.STOPPED


def test_an_update_after_the_end_is_dropped(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def stop_then_send() -> bool:
        tasks, _ = await experiment.scheduler.wait_for_tasks("a")
        experiment.stop()
        return await send(experiment, "a", 0, train("a", 0, MODEL), results_of("a", tasks, MODEL))

    assert play(experiment, stop_then_send()) == [False]


def test_without_a_deadline_the_experiment_fails_with_the_envoy_that_leaves(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def leave() -> None:
        await experiment.scheduler.wait_for_tasks("b")
        experiment.scheduler.depart("b", "Traceback\nValueError: no such file")

    play(experiment, serve(experiment, "a"), leave())
    assert experiment.state.status is Status.FAILED
    assert experiment.state.error == "envoy 'b': Traceback\nValueError: no such file"


@pytest.mark.parametrize("reason", ["killed by SIGKILL\nand more", ""])
def test_with_a_deadline_the_others_go_on_at_once_and_for_good(tmp_path, reason):
    experiment = make_experiment(
        tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 1000, "quorum": 2}
    )

    async def leave() -> None:
        await experiment.scheduler.wait_for_tasks("b")
        experiment.scheduler.depart("b", reason)

    play(experiment, serve(experiment, "a"), leave(), serve(experiment, "c"))
    assert experiment.state.status is Status.FINISHED
    first, last = experiment.folder.history
    assert first["refused"].keys() == {"b"}
    assert first["refused"]["b"] == "left the experiment: killed by SIGKILL" if reason else "left the experiment"
    assert (last["refused"], last["missing"]) == ({}, [])
    assert (experiment.state.members, experiment.state.departed) == (["a", "c"], {"b": reason})
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ac", 0))


def test_below_the_quorum_nobody_goes_on(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation=QUORUM_OF_TWO)

    async def leave() -> None:
        await experiment.scheduler.wait_for_tasks("b")
        experiment.scheduler.depart("b", "out of memory")

    play(experiment, serve(experiment, "a"), leave())
    assert experiment.state.status is Status.FAILED
    assert "out of memory" in experiment.state.error


def test_when_no_trainer_is_left_an_evaluator_does_not_go_on(tmp_path):
    participation = {"deadline_seconds": 1000, "evaluators": ["b"]}
    experiment = make_experiment(tmp_path, rounds=1, participation=participation)

    async def leave() -> None:
        await experiment.scheduler.wait_for_tasks("a")
        experiment.scheduler.depart("a", "out of memory")

    play(experiment, serve(experiment, "b"), leave())
    assert (experiment.state.status, experiment.state.error) == (Status.FAILED, "envoy 'a': out of memory")


def test_patience_ends_the_experiment_early(tmp_path):
    experiment = make_experiment(tmp_path, rounds=9, patience=2, tasks=[VALIDATE])
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    assert experiment.state.status is Status.FINISHED
    assert [record["best"] for record in experiment.folder.history] == [True, False, False]


def test_the_model_of_a_round_comes_with_what_the_rate_is_multiplied_by(tmp_path):
    experiment = make_experiment(tmp_path)
    assert global_model(experiment)[1] == {"round": 0, "rate_factor": 1.0}
    experiment.rounds.progress = experiment.rounds.progress.model_copy(update={"rate_halvings": 2})
    assert global_model(experiment)[1] == {"round": 0, "rate_factor": 0.25}


def test_the_models_of_the_last_rounds_are_kept(tmp_path):
    experiment = make_experiment(tmp_path, rounds=3, keep=2, tasks=[TRAIN])
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    models = [MODEL]
    for round_number in range(3):
        models.append(next_model(models[-1], "ab", round_number))
    path = experiment.folder.path
    assert {file.name for file in path.glob("round-*")} == {"round-1.safetensors", "round-2.safetensors"}
    assert_model(path / "round-1.safetensors", models[2])
    assert_model(path / "round-2.safetensors", models[3])


def test_in_float16_half_as_much_travels_and_sums_and_models_are_float32(tmp_path):
    experiment = make_experiment(tmp_path, rounds=2, precision="float16", tasks=[TRAIN])
    seen = []

    async def watch() -> None:
        seen.append(global_model(experiment)[0])
        await serve(experiment, "a")

    play(experiment, watch(), serve(experiment, "b"))
    assert seen[0]["weight"].dtype == np.float16
    assert seen[0]["steps"].dtype == MODEL["steps"].dtype
    model = MODEL
    for round_number in range(2):
        model = next_model(model, "ab", round_number, "float16")
    assert_model(experiment.folder.named_model("last"), model)
    assert load(experiment.folder.named_model("last"))["weight"].dtype == np.float32


def test_history_follows_a_running_experiment_to_its_end(tmp_path):
    experiment = make_experiment(tmp_path, rounds=2)

    async def follow() -> list[int]:
        return [json.loads(line)["round"] async for line in experiment.view.history()]

    outcome = play(experiment, follow(), serve(experiment, "a"), serve(experiment, "b"), follow())
    assert outcome[0] == outcome[3] == [0, 1, 2]


def test_a_disk_that_cannot_be_read_fails_the_experiment_and_says_so(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def lose_an_update() -> None:
        await answer(experiment, "a")
        [counted] = experiment.intake.contributions()
        counted.path.unlink()
        await answer(experiment, "b")

    play(experiment, lose_an_update())
    assert experiment.state.status is Status.FAILED
    assert "the director cannot read or write: " in experiment.state.error
    assert "No such file" in experiment.state.error


def test_a_summary_says_who_is_waited_for(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, corpus="superb")

    async def look() -> ExperimentSummary:
        await answer(experiment, "a")
        summary = experiment.view.summary()
        await asyncio.gather(serve(experiment, "a"), serve(experiment, "b"))
        return summary

    (during,) = play(experiment, look())
    assert during.model_dump() == {
        "name": "toy", "owner": "me", "corpus": "superb", "status": "in_progress", "round": 0, "rounds": 1,
        "best": {"metric": "score", "direction": "max"}, "envoys": ["a", "b"],
        "waiting_for": ["b"], "waits": "", "seconds_per_round": None, "error": "",
        "submitted": experiment.state.submitted, "ended": None,
    }  # fmt: skip
    after = experiment.view.summary()
    assert (after.status, after.waiting_for, after.round) == ("finished", [], 2)
    assert after.submitted < after.ended
    assert after.seconds_per_round == experiment.folder.history[-1]["seconds"]


def test_the_open_round_shows_who_is_done_refused_offline_and_how_far_the_others_are(tmp_path):
    gone = set()
    experiment = make_experiment(tmp_path, members="abcd", is_online=lambda envoy: envoy not in gone)
    report = ProgressReport(
        experiment="toy", envoy="d", round=0, task="train", seconds=10, step=2, total=8, clips=64, memory_bytes=9,
        gpu_memory_bytes=7,
    )  # fmt: skip

    async def look() -> LiveRound:
        await answer(experiment, "a")
        await until(lambda: experiment.rounds.results.keys() == {"a"})
        gone.add("b")
        experiment.rounds.refuse("c", "NaN")
        assert experiment.view.progress_of("d") == EnvoyProgress(name="d", state="works")
        experiment.live.note(report)
        now = experiment.view.live_round()
        experiment.live.note(report.model_copy(update={"round": 1}))
        assert experiment.view.progress_of("d") == EnvoyProgress(name="d", state="works")
        experiment.stop()
        return now

    (now,) = play(experiment, look())
    assert (now.live, now.rounds, now.seconds_left, now.others) == (0, 2, None, 0)
    assert now.envoys == [
        EnvoyProgress(name="a", state="done"),
        EnvoyProgress(name="b", state="offline", since=0.0),
        EnvoyProgress(name="c", state="refused", why="NaN"),
        EnvoyProgress(
            name="d", state="works", task="train", step=2, total=8, clips_per_second=6.4, seconds_left=30,
            memory_bytes=9, gpu_memory_bytes=7,
        ),
    ]  # fmt: skip


def test_a_running_transfer_is_shown_with_the_bytes_that_have_crossed(tmp_path):
    experiment = make_experiment(tmp_path, members="a")
    seen: list[tuple[str, int, int]] = []

    def look() -> None:
        now = experiment.view.progress_of("a")
        if now.transfer:
            seen.append((now.transfer, now.bytes_moved, now.bytes_total))

    async def story() -> None:
        await until(lambda: experiment.phase is Phase.OPEN)
        for _ in experiment.scheduler.global_model("a", repeat(20)):
            look()
        sending = asyncio.create_task(send(experiment, "a", 0, MODEL, results_of("a", [VALIDATE, TRAIN], MODEL)))
        while not sending.done():
            look()
            await asyncio.sleep(0)
        look()
        experiment.stop()

    play(experiment, story())
    assert sorted({*seen}, key=seen.index) == [
        *(("download", moved, 56) for moved in (0, 20, 40)),
        *(("upload", moved, 56) for moved in (0, 28)),
    ]


def test_the_time_that_a_transfer_will_take_follows_from_its_pace():
    live = Live()
    with live.transfer("a", "upload", 100) as transfer:
        assert transfer.seconds_left is None
        transfer.moved = 20
        transfer.began -= 10
        assert transfer.seconds_left == pytest.approx(40, abs=1)
        with live.transfer("a", "upload", 100) as again:  # the connection of the first has broken unnoticed
            assert live.transfer_of("a") is again
        assert live.transfer_of("a") is None
    assert live.transfer_of("a") is None


def test_envoys_report_less_often_while_nobody_looks(monkeypatch):
    live = Live()
    report = ProgressReport(experiment="toy", envoy="a", round=0, task="train", seconds=1)
    assert live.note(report) == UNWATCHED_SECONDS
    with live.watched():
        assert live.note(report) == WATCHED_SECONDS
    assert live.note(report) == UNWATCHED_SECONDS
    live.looked()
    assert live.note(report) == WATCHED_SECONDS


def test_an_envoy_that_does_not_report_when_it_should_is_silent(monkeypatch):
    live = Live()
    report = ProgressReport(experiment="toy", envoy="a", round=0, task="train", seconds=1)
    now = 100.0
    monkeypatch.setattr("openfl_audio.director.live.time.monotonic", lambda: now)
    live.note(report)
    now += SILENT_INTERVALS * UNWATCHED_SECONDS
    assert live.silent_seconds("a") is None
    with live.watched():
        live.note(report)
    now += SILENT_INTERVALS * WATCHED_SECONDS + 0.5
    assert live.silent_seconds("a") == SILENT_INTERVALS * WATCHED_SECONDS + 0.5
    live.note(report)
    assert live.silent_seconds("a") is None


def test_what_an_envoys_part_of_a_round_took_is_in_its_record(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, members="a")

    async def story() -> None:
        with experiment.clock.measure("a", "upload"):
            pass  # of the round before
        await until(lambda: experiment.phase is Phase.OPEN)
        with experiment.clock.measure("a", "download"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        with experiment.clock.measure("a", "upload"):
            await answer(experiment, "a")
        await serve(experiment, "a")

    play(experiment, story())
    first, second = experiment.folder.history
    assert first["timings"]["a"].keys() == {"download", "tasks", "upload"}
    assert first["timings"]["a"]["download"] >= 0.01
    assert first["timings"]["a"]["tasks"] >= 0.02
    assert second["timings"] == {}
