import asyncio
import contextlib
import io
import json
import os
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from openfl.protocols import aggregator_pb2, director_pb2

from openfl_audio.director.authorization import Caller, Gate
from openfl_audio.director.director import Director
from openfl_audio.director.experiment import Experiment
from openfl_audio.director.notification import Changes
from openfl_audio.director.run import Phase
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.director.services.aggregator import AggregatorService
from openfl_audio.errors import EnvoyRefusedError, SubmissionError
from openfl_audio.protocol.messages import Order, TaskResult, UpdateMessage
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.tensors import Header

# Nothing has to be trained here: an update is its results.
VALIDATE = Task(name="aggregated_model_validate", function_name="validate", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")
CORPORA = {"a": "superb", "b": "superb", "c": "superb", "x": "esc50", "y": "esc50"}
SECONDS = 60


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def shard_info(name: str) -> director_pb2.ShardInfo:
    info = director_pb2.ShardInfo()
    info.node_info.name = name
    return info


async def register(director: Director, names: str, instance: str = "first", clips: int = 5) -> None:
    sizes = {"train": {"clips": clips}, "validate": {"clips": clips}}
    for name in names:
        director.register(shard_info(name), CORPORA[name], instance, f"peer of {name}", sizes)


async def submit(
    director: Director, name: str, rounds: int = 3, owner: str = "me", weights: int = 2, **plan: Any
) -> Experiment:
    plan = ExperimentPlan(
        name=name,
        federation_uuid=name,
        rounds=rounds,
        **{"tasks": [VALIDATE], "best": BestModel(metric="score", direction="max")} | plan,
    )
    workspace = io.BytesIO()
    with zipfile.ZipFile(workspace, "w") as zipped:
        zipped.writestr("plan/plan.yaml", "")
    path = director.runs.parent / f"submission-{name}"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(EXPERIMENT_PLAN, plan.model_dump_json())
        zipped.writestr(ARCHIVE, workspace.getvalue())
        zipped.writestr(INITIAL_MODEL, safetensors.numpy.save({"weight": np.zeros(weights, np.float32)}))
    await director.submit(path, owner)
    return director.experiments[name]


async def answer(experiment: Experiment, envoy: str) -> None:
    async def no_tensors() -> AsyncIterator[bytes]:
        for piece in ():
            yield piece

    await until(lambda: experiment.phase is Phase.OPEN and bool(experiment.rounds.tasks_for(envoy)))
    results = {VALIDATE.name: TaskResult(size=1, metrics={"score": 0.0})}
    update = UpdateMessage(
        experiment=experiment.plan.name, envoy=envoy, round=experiment.rounds.round_number, results=results
    )
    assert await experiment.intake.receive(update, Header({}, update.model_dump()), no_tensors())


@contextlib.asynccontextmanager
async def attending(director: Director, name: str) -> AsyncIterator[Callable[[], Order]]:
    """`name` is there within the block, and gone after it. Yields a function that gives the latest order."""
    orders: list[Order] = []

    async def listen() -> None:
        async with contextlib.aclosing(director.attend(name, "first")) as stream:
            async for order in stream:
                orders.append(order)

    task = asyncio.create_task(listen())
    try:
        await until(lambda: bool(orders))
        yield lambda: orders[-1]
    finally:
        while not task.done():  # asyncio.wait_for of Python 3.11 and earlier may lose a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=0.05)


async def lose(director: Director, name: str) -> None:
    """`name` was there, and its connection broke."""
    async with attending(director, name):
        assert director.is_online(name)
    assert not director.is_online(name)


def status_of(director: Director, name: str) -> Status:
    return director.experiments[name].state.status


def assigned(director: Director) -> dict[str, str]:
    return {envoy.name: envoy.experiment for envoy in director.status(Caller("me")).envoys}


async def is_running(experiment: Experiment) -> None:
    await until(lambda: experiment.state.status is Status.IN_PROGRESS and bool(experiment.rounds.participants))


@pytest.fixture
def play(tmp_path) -> Callable[[Callable[[Director], Coroutine]], Any]:
    """Runs a coroutine function with a director."""
    (tmp_path / "runs").mkdir()

    def run(story: Callable[[Director], Coroutine]) -> Any:
        return asyncio.run(asyncio.wait_for(story(Director(tmp_path / "runs", 60)), 2 * SECONDS))

    return run


def test_an_experiment_takes_the_envoys_of_its_corpus_and_no_others(play):
    async def story(director: Director) -> None:
        await register(director, "abxy")
        experiment = await submit(director, "one", corpus="esc50")
        await is_running(experiment)
        assert experiment.state.members == ["x", "y"]
        assert assigned(director) == {"a": "", "b": "", "x": "one", "y": "one"}

    play(story)


def test_an_envoy_that_registers_again_before_its_experiment_has_begun_takes_part(play):
    async def story(director: Director) -> None:
        await register(director, "xy")
        experiment = await submit(director, "one", corpus="esc50")
        assert experiment.state.status is Status.PENDING
        director.register(shard_info("x"), CORPORA["x"], "first", "peer of x")
        await is_running(experiment)
        assert assigned(director) == {"x": "one", "y": "one"}

    play(story)


def test_an_experiment_begins_when_as_many_envoys_have_come_as_it_waits_for(play):
    async def story(director: Director) -> None:
        await register(director, "ax")
        wanted = Participation(min_members=3, deadline_seconds=1000, quorum=2)
        experiment = await submit(director, "three", corpus="superb", participation=wanted)
        assert experiment.state.status is Status.PENDING
        assert "2 more envoys are to come" in experiment.view.summary().waits
        other = await submit(director, "other", corpus="superb")
        await is_running(other)  # nobody is kept for an experiment that waits for more
        other.stop()
        await register(director, "b")
        assert experiment.state.status is Status.PENDING
        assert experiment.state.members == ["a", "b"]
        await register(director, "c")
        await is_running(experiment)
        assert assigned(director) == {"a": "three", "b": "three", "c": "three", "x": ""}

    play(story)


def test_without_a_corpus_all_envoys_are_taken_if_they_serve_the_same(play):
    async def story(director: Director) -> None:
        await register(director, "cab")
        assert (await submit(director, "one")).state.members == ["a", "b", "c"]

    play(story)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "several corpora and no name": ({}, r"serve several corpora, \['esc50', 'superb'\]: name one, or name the envoys"),
    "a corpus that nobody serves": ({"corpus": "fsd"}, "no envoy of the corpus 'fsd' is online"),
    "an envoy that nobody knows": (
        {"envoys": ["a", "z"]},
        r"envoys \['z'\] are not online \(online: \['a', 'b', 'x'\]\)",
    ),
    "an envoy that is gone": ({"envoys": ["a", "y"]}, r"envoys \['y'\] are not online"),
    "an envoy of another corpus": (
        {"envoys": ["a", "x"], "corpus": "superb"},
        "for the corpus 'superb', but envoys serve {'x': 'esc50'}",
    ),
    "an evaluator that is no member": (
        {"envoys": ["a"], "participation": Participation(evaluators=["b"])},
        r"evaluators \['b'\] are not among the experiment's envoys \['a'\]",
    ),
    "an evaluator of another corpus": (
        {"corpus": "superb", "participation": Participation(evaluators=["x"])},
        r"evaluators \['x'\] are not among the experiment's envoys \['a', 'b'\]",
    ),
    "evaluators and nobody who trains": (
        {"envoys": ["a"], "tasks": [VALIDATE, TRAIN], "participation": Participation(evaluators=["a"])},
        r"of the envoys \['a'\], 0 can contribute to a round, fewer than its quorum of 1",
    ),
    "several that validate what only one can": (
        {"corpus": "superb", "best": BestModel(metric="f1", direction="max")},
        r"of the envoys \['a', 'b'\]: metric 'f1' cannot choose the best model: .* Name one envoy",
    ),
    "fewer envoys than a quorum": (
        {"corpus": "superb", "participation": Participation(deadline_seconds=9, quorum=3)},
        r"of the envoys \['a', 'b'\], 2 can contribute to a round, fewer than its quorum of 3",
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_an_experiment_that_cannot_run_is_refused_and_its_name_is_free_again(play, fault):
    plan, sentence = REFUSALS[fault]

    async def story(director: Director) -> None:
        await register(director, "abxy")
        await lose(director, "y")
        with pytest.raises(SubmissionError, match=sentence):
            await submit(director, "one", **plan)
        assert director.experiments == {}
        assert list(director.runs.iterdir()) == []
        await submit(director, "one", envoys=["a"])

    play(story)


def test_named_envoys_may_serve_several_corpora(play):
    async def story(director: Director) -> None:
        await register(director, "abx")
        assert (await submit(director, "one", envoys=["x", "a"])).state.members == ["x", "a"]

    play(story)


def test_without_any_envoy_an_experiment_is_refused_in_plain_words(play):
    async def story(director: Director) -> None:
        with pytest.raises(SubmissionError, match="no envoy") as caught:
            await submit(director, "one")
        assert "None" not in str(caught.value)

    play(story)


def test_a_submission_that_is_cancelled_leaves_nothing_behind_and_its_name_is_free(play):
    async def story(director: Director) -> None:
        await register(director, "a")
        submission = asyncio.create_task(submit(director, "one", weights=1 << 21))
        while not any(director.runs.iterdir()):
            await asyncio.sleep(0)
        assert submission.cancel(), "it is being unpacked"
        with pytest.raises(asyncio.CancelledError):
            await submission
        assert (director.experiments, list(director.runs.iterdir())) == ({}, [])
        await submit(director, "one")

    play(story)


def test_a_name_is_used_once(play):
    async def story(director: Director) -> None:
        await register(director, "a")
        first = await submit(director, "one")
        with pytest.raises(SubmissionError, match="an experiment named 'one' exists already"):
            await submit(director, "one")
        assert director.experiments == {"one": first}

    play(story)


def test_experiments_on_other_envoys_run_at_once(play):
    async def story(director: Director) -> None:
        await register(director, "abx")
        experiments = [
            await submit(director, "one", envoys=["a"]),
            await submit(director, "two", envoys=["b"]),
            await submit(director, "three", corpus="esc50"),
        ]
        for experiment in experiments:
            await is_running(experiment)
        assert assigned(director) == {"a": "one", "b": "two", "x": "three"}

    play(story)


def test_an_experiment_that_waits_keeps_its_envoys_from_a_later_one_and_runs_first(play):
    async def story(director: Director) -> None:
        await register(director, "abc")
        first = await submit(director, "first", envoys=["a", "b"])
        await is_running(first)
        waiting = await submit(director, "waiting", envoys=["b", "c"])
        later = await submit(director, "later", envoys=["c"])
        await asyncio.sleep(0.02)
        assert (waiting.state.status, later.state.status) == (Status.PENDING, Status.PENDING)
        assert assigned(director)["c"] == ""
        first.stop()
        await is_running(waiting)
        assert assigned(director) == {"a": "", "b": "waiting", "c": "waiting"}
        assert later.state.status is Status.PENDING
        waiting.stop()
        await is_running(later)
        assert assigned(director) == {"a": "", "b": "", "c": "later"}

    play(story)


def test_a_pending_experiment_waits_for_an_envoy_that_went_away(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        first = await submit(director, "first")
        waiting = await submit(director, "waiting")
        await lose(director, "b")
        first.stop()
        await until(lambda: assigned(director)["a"] == "")
        assert waiting.state.status is Status.PENDING
        await register(director, "b", "second")
        await is_running(waiting)
        assert assigned(director) == {"a": "waiting", "b": "waiting"}

    play(story)


@pytest.mark.parametrize("gone", ["before", "after"])
def test_one_that_waits_for_an_envoy_that_is_gone_lets_others_pass(play, gone):
    async def story(director: Director) -> None:
        await register(director, "ab")
        async with attending(director, "b"):
            await is_running(await submit(director, "first", envoys=["b"]))
            waiting = await submit(director, "waiting", envoys=["a", "b"])
            if gone == "after":
                later = await submit(director, "later", envoys=["a"])
                await asyncio.sleep(0.02)
                assert later.state.status is Status.PENDING
        if gone == "before":
            later = await submit(director, "later", envoys=["a"])
        await is_running(later)
        assert waiting.state.status is Status.PENDING

    play(story)


def test_a_member_that_registers_more_clips_later_is_named_and_weighs_those_of_before(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        experiment = await submit(director, "one")
        await is_running(experiment)
        await lose(director, "b")
        await register(director, "b", "second", clips=10**9)
        for envoy in "ab":
            await answer(experiment, envoy)
        await until(lambda: len(experiment.folder.history) == 1)
        said = "registered 1000000000 clips to {} with, and 5 when it joined: it weighs those"
        notes = experiment.folder.history.last["notes"]
        assert notes == {"b": [said.format("train"), said.format("validate")]}
        assert experiment.rounds.registered["b"]["train"] == {"clips": 5}
        again = Experiment(RunFolder.load(experiment.folder.path), experiment.record, director.is_online)
        assert again.rounds.registered == experiment.rounds.registered

    play(story)


@pytest.mark.parametrize("gone", ["in the round", "before the round"])
def test_one_whose_envoys_wait_for_an_envoy_that_is_gone_lets_others_pass_and_runs_when_that_is_back(play, gone):
    async def story(director: Director) -> None:
        await register(director, "abc")
        async with attending(director, "b"):
            first = await submit(director, "first", envoys=["a", "b"])
            await is_running(first)
            waiting = await submit(director, "waiting", envoys=["a", "c"])
            later = await submit(director, "later", envoys=["c"])
            await asyncio.sleep(0.02)
            assert (waiting.state.status, later.state.status) == (Status.PENDING, Status.PENDING)
            if gone == "before the round":
                await answer(first, "b")
        if gone == "before the round":
            # Until now nobody waits for 'b'.
            assert later.state.status is Status.PENDING
            await answer(first, "a")
        await is_running(later)
        assert waiting.state.status is Status.PENDING
        later.stop()
        await register(director, "b", "second")
        director.assign()
        last = await submit(director, "last", envoys=["c"])
        assert last.state.status is Status.PENDING
        first.stop()
        await is_running(waiting)
        assert assigned(director) == {"a": "waiting", "b": "", "c": "waiting"}

    play(story)


def test_with_a_deadline_an_envoy_that_is_gone_holds_nobody_up_unless_it_is_needed_for_the_quorum(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        async with attending(director, "b"):
            enough = await submit(director, "enough", participation=Participation(deadline_seconds=1000, quorum=1))
            await is_running(enough)
        assert not enough.scheduler.is_held_up
        enough.stop()
        await register(director, "b", "first")
        async with attending(director, "b"):
            short = await submit(director, "short", participation=Participation(deadline_seconds=1000, quorum=2))
            await is_running(short)
            assert not short.scheduler.is_held_up
        assert short.scheduler.is_held_up

    play(story)


def test_what_is_for_one_envoy_wakes_no_other(play, monkeypatch):
    async def story(director: Director) -> None:
        woken = []
        monkeypatch.setattr(Changes, "notify", lambda changes: woken.append(changes))
        await register(director, "abx")
        submitted = await submit(director, "only-a", envoys=["a"])
        concerned = (director.envoys["a"].changes, submitted.news, submitted.answered)
        assert director.envoys["a"].changes in woken
        assert all(any(changes is each for each in concerned) for changes in woken)
        woken.clear()
        director.expect_experiments()
        director.expect_experiments()
        assert woken == [entry.changes for entry in director.envoys.values()]

    play(story)


def test_a_late_envoy_joins_an_experiment_of_its_corpus_from_the_next_round(play):
    async def story(director: Director) -> None:
        await register(director, "abx")
        experiment = await submit(director, "one", corpus="superb")
        await is_running(experiment)
        await register(director, "cy")
        assert assigned(director) == {"a": "one", "b": "one", "c": "one", "x": "", "y": ""}
        assert experiment.state.members == ["a", "b", "c"]
        assert list(experiment.rounds.participants) == ["a", "b"]
        for envoy in "ab":
            await answer(experiment, envoy)
        for envoy in "abc":
            await answer(experiment, envoy)
        await until(lambda: len(experiment.folder.history) == 2)
        assert [list(record["envoys"]) for record in experiment.folder.history] == [["a", "b"], ["a", "b", "c"]]

    play(story)


def test_a_late_envoy_joins_also_where_the_corpus_was_left_out(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        experiment = await submit(director, "one")
        await is_running(experiment)
        await register(director, "xc")
        assert assigned(director) == {"a": "one", "b": "one", "c": "one", "x": ""}

    play(story)


def test_an_envoy_becomes_free_and_joins(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        alone = await submit(director, "alone", envoys=["b"])
        wide = await submit(director, "wide", envoys=None, corpus="superb")
        alone.stop()
        await is_running(wide)
        assert assigned(director) == {"a": "wide", "b": "wide"}

    play(story)


def test_an_experiment_of_named_envoys_takes_nobody_else(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        experiment = await submit(director, "one", envoys=["a", "b"])
        await is_running(experiment)
        await register(director, "c")
        assert assigned(director)["c"] == ""
        assert experiment.state.members == ["a", "b"]

    play(story)


def test_an_envoy_that_is_gone_does_not_join_until_it_is_back(play):
    async def story(director: Director) -> None:
        await register(director, "abc")
        await lose(director, "c")
        experiment = await submit(director, "one")
        await is_running(experiment)
        await register(director, "x")  # whatever makes the director look again
        assert experiment.state.members == ["a", "b"]
        await register(director, "c", "second")
        assert experiment.state.members == ["a", "b", "c"]

    play(story)


def test_an_envoy_that_an_experiment_failed_on_does_not_join_it_again(play):
    async def story(director: Director) -> None:
        await register(director, "abc")
        experiment = await submit(director, "one", participation=Participation(deadline_seconds=1000))
        await is_running(experiment)
        experiment.scheduler.depart("c", "out of memory")
        director.assign()
        await register(director, "c", "first")
        assert assigned(director) == {"a": "one", "b": "one", "c": ""}
        assert experiment.state.members == ["a", "b"]

    play(story)


def test_an_envoy_hears_of_experiments_as_they_come_and_go(play):
    async def story(director: Director) -> None:
        await register(director, "a")
        async with attending(director, "a") as order:
            assert order() == Order(experiment="", prestart=False)
            director.expect_experiments()
            await until(lambda: order().prestart)
            experiment = await submit(director, "one")
            await until(lambda: order().experiment == "one")
            experiment.stop()
            await until(lambda: order().experiment == "")

    play(story)


def test_an_envoy_that_comes_back_in_mid_experiment_is_told_to_go_on(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        experiment = await submit(director, "one")
        await is_running(experiment)
        await lose(director, "a")
        await register(director, "a", "first")
        async with attending(director, "a") as order:
            assert order().experiment == "one"

    play(story)


def test_a_second_envoy_of_a_name_is_refused_while_the_first_is_there(play):
    async def story(director: Director) -> None:
        await register(director, "a")
        async with attending(director, "a"):
            with pytest.raises(
                EnvoyRefusedError, match="'a' is connected already, from peer of a: give this one another"
            ):
                await register(director, "a", "second")
        await register(director, "a", "second")
        with pytest.raises(EnvoyRefusedError, match="envoy 'a' is not registered"):
            await anext(director.attend("a", "first"))

    play(story)


def test_an_envoy_that_nobody_knows_has_to_register(play):
    async def story(director: Director) -> None:
        with pytest.raises(EnvoyRefusedError, match="envoy 'a' is not registered"):
            director.heard_from("a")
        with pytest.raises(EnvoyRefusedError, match="envoy 'a' is not registered"):
            await director.wait_experiment("a")

    play(story)


def test_waiting_for_an_experiment_ends_when_there_is_one(play):
    async def story(director: Director) -> None:
        await register(director, "a")
        waiting = asyncio.create_task(director.wait_experiment("a"))
        await asyncio.sleep(0)
        experiment = await submit(director, "one")
        assert await waiting is experiment

    play(story)


def test_only_its_owner_reads_why_an_experiment_failed(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        mine = await submit(director, "mine", envoys=["a"], owner="me")
        await submit(director, "yours", envoys=["b"], owner="you")
        mine.fail("my secret path")
        status = {user: director.status(Caller(user)).experiments for user in ("me", "you")}
        assert [summary.name for summary in status["you"]] == ["mine", "yours"]
        assert [summary.error for summary in status["me"]] == ["my secret path", ""]
        assert [summary.error for summary in status["you"]] == ["", ""]

    play(story)


def test_a_director_that_starts_again_goes_on_where_it_was(play):
    async def before(director: Director) -> None:
        await register(director, "abc")
        done = await submit(director, "done", envoys=["a"])
        await is_running(done)
        done.stop()
        running = await submit(director, "running", envoys=["a", "b"])
        for envoy in "ab":
            await answer(running, envoy)
        await answer(running, "b")
        await submit(director, "pending-2", envoys=["b"])
        await submit(director, "pending-1", envoys=["b", "c"])

    async def after(director: Director) -> None:
        # What is no experiment is left alone, and what was never finished is thrown away.
        (director.runs / ".new-1").mkdir()
        (director.runs / ".submission-1").write_bytes(b"half")
        (director.runs / "notes").mkdir()
        (director.runs / "notes.txt").write_text("mine")
        await director.recover()
        assert list(director.experiments) == ["done", "running", "pending-2", "pending-1"], "in order of submission"
        assert {path.name for path in director.runs.iterdir()} == {
            *director.experiments,
            "notes",
            "notes.txt",
            "record.jsonl",
        }
        running = director.experiments["running"]
        await is_running(running)
        assert running.rounds.round_number == 1
        assert running.rounds.tasks_for("b") == [], "it had answered"
        assert status_of(director, "done") is Status.STOPPED
        assert status_of(director, "pending-1") is Status.PENDING
        await register(director, "abc", "again")
        assert assigned(director) == {"a": "running", "b": "running", "c": ""}
        await answer(running, "a")
        await until(lambda: len(running.folder.history) == 2)
        running.stop()
        await is_running(director.experiments["pending-2"])
        assert status_of(director, "pending-1") is Status.PENDING

    play(before)
    play(after)


def cut_model(path: Path) -> None:
    os.truncate(path / "models/0.safetensors", 0)


def cut_history(path: Path) -> None:
    (path / "history.jsonl").write_text('{"rou')


@pytest.mark.parametrize("spoil", [cut_model, cut_history])
def test_one_folder_that_cannot_be_read_keeps_no_other_experiment_from_going_on(play, spoil):
    async def before(director: Director) -> None:
        await register(director, "ab")
        for name, envoy in (("bad", "a"), ("good", "b")):
            experiment = await submit(director, name, envoys=[envoy])
            await answer(experiment, envoy)
            await until(lambda experiment=experiment: len(experiment.folder.history) == 1)

    async def after(director: Director) -> None:
        spoil(director.runs / "bad")
        await director.recover()
        await is_running(director.experiments["good"])

    play(before)
    play(after)


def test_what_a_director_recovers_is_what_was_submitted(play, tmp_path):
    async def before(director: Director) -> None:
        await register(director, "ab")
        await is_running(await submit(director, "one", owner="somebody", rounds=7))

    play(before)
    folder: RunFolder = RunFolder.load(Path(tmp_path / "runs/one"))
    assert (folder.state.owner, folder.state.members, folder.plan.rounds) == ("somebody", ["a", "b"], 7)


def test_an_experiment_that_cannot_be_taken_up_is_shown_with_the_reason_and_its_name_stays_taken(play):
    async def before(director: Director) -> None:
        await register(director, "a")
        for name in ("newer", "broken"):
            await submit(director, name, envoys=["a"])

    async def after(director: Director) -> None:
        plan = director.runs / "newer/experiment.json"
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"robust": True}))
        (director.runs / "broken/state.json").write_text("{")
        await director.recover()
        shown = {each.name: each for each in director.status(Caller("me")).experiments}
        assert {name: each.status for name, each in shown.items()} == {"newer": "failed", "broken": "failed"}
        assert "newer/experiment.json cannot be used by openfl-audio " in shown["newer"].error
        assert "broken/state.json cannot be used by openfl-audio" in shown["broken"].error
        others = {each.name: each.error for each in director.status(Caller("you")).experiments}
        assert others["newer"] == "", "its owner can be told"
        assert others["broken"], "whose it is nobody knows"
        await register(director, "a")
        with pytest.raises(SubmissionError, match="'newer' exists already"):
            await submit(director, "newer", envoys=["a"])

    play(before)
    play(after)


def test_a_call_of_an_envoy_looks_at_no_experiment_but_its_own(play, monkeypatch):
    class Untouchable(dict):
        def values(self):
            raise AssertionError("looks at all experiments")

    async def story(director: Director) -> None:
        await register(director, "ab")
        experiment = await submit(director, "one", envoys=["a"])
        await is_running(experiment)
        await answer(experiment, "a")
        service = AggregatorService(director, Gate(tls=False))
        header = aggregator_pb2.MessageHeader(sender="a", federation_uuid="one")
        monkeypatch.setattr(director, "experiments", Untouchable(director.experiments))
        assert await service._find(None, header) == (experiment, "a")
        monkeypatch.undo()

    play(story)
