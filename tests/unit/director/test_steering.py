"""Experiments that are resumed, deleted, and left by envoys, as somebody wishes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from openfl_audio.config import Retention
from openfl_audio.director.authorization import Caller
from openfl_audio.director.director import Director
from openfl_audio.director.experiment import Experiment
from openfl_audio.director.run import Phase
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.errors import RunFolderError, SteeringError
from openfl_audio.protocol.messages import Order
from openfl_audio.protocol.tensors import write_tensors
from tests.unit.director import test_director
from tests.unit.director.test_director import attending, is_running, register, status_of, submit
from tests.unit.director.toy_experiment import (
    MODEL,
    QUORUM_OF_TWO,
    answer,
    make_experiment,
    play,
    running,
    serve,
    until,
)

direct = test_director.play  # a fixture


def final_model(tmp_path: Path, members: str, **plan: Any) -> bytes:
    """Return the final model of an experiment that nothing disturbs."""
    experiment = make_experiment(tmp_path, name="undisturbed", members=members, **plan)
    play(experiment, *[serve(experiment, envoy) for envoy in members])
    return experiment.folder.named_model("last").read_bytes()


def begin(experiment: Experiment, end: str) -> None:
    """Run a round and a half, and end the experiment as `end` says: "stop" or "fail" on envoy 'b'."""

    async def story() -> None:
        async with running(experiment):
            for envoy in ("a", "b", "a"):
                await answer(experiment, envoy)
            assert experiment.rounds.round_number == 1
            assert experiment.rounds.results.keys() == {"a"}
            if end == "stop":
                experiment.stop()
            else:
                experiment.scheduler.depart("b", "no luck\nwith this")
            await until(lambda: experiment.ended)

    asyncio.run(story())


def resumed(experiment: Experiment) -> Experiment:
    return Experiment(experiment.folder.resumed(), experiment.record, lambda _: True)


@pytest.mark.parametrize("end", ["stop", "fail"])
@pytest.mark.parametrize(
    "plan", [{}, {"aggregation": {"server_optimizer": {"optimizer": "adam"}}}], ids=["mean", "server optimizer"]
)
def test_a_resumed_experiment_comes_to_the_model_of_one_that_nothing_disturbed(tmp_path, end, plan):
    expected = final_model(tmp_path, "ab", rounds=3, **plan)
    experiment = make_experiment(tmp_path, rounds=3, **plan)
    begin(experiment, end)
    assert experiment.state.status is (Status.STOPPED if end == "stop" else Status.FAILED)
    again = resumed(RunFolderOf(experiment))
    assert (again.state.status, again.state.error, again.state.ended_at) == (Status.PENDING, "", None)
    assert (again.state.members, again.state.departed) == (["a", "b"], {})
    play(again, serve(again, "a"), serve(again, "b"))
    assert again.state.status is Status.FINISHED
    assert [record["round"] for record in again.folder.history] == [0, 1, 2, 3]
    assert again.folder.named_model("last").read_bytes() == expected


class RunFolderOf:
    """The experiment as a director that was started after its end knows it."""

    def __init__(self, experiment: Experiment) -> None:
        self.folder, self.record = RunFolder.load(experiment.folder.path), experiment.record


def test_an_experiment_whose_model_is_gone_is_not_resumed_and_stays_as_it_was(tmp_path):
    experiment = make_experiment(tmp_path)
    begin(experiment, "stop")
    before = (experiment.folder.path / "state.json").read_bytes()
    write_tensors(experiment.folder.model, MODEL, {"aggregations": 7})
    with pytest.raises(RunFolderError, match="it is the one after 7 aggregations, not after 1"):
        experiment.folder.resumed()
    experiment.folder.archive.unlink()
    with pytest.raises(RunFolderError, match="workspace.zip, which the envoys need, is not there any more"):
        experiment.folder.resumed()
    assert (experiment.folder.path / "state.json").read_bytes() == before


def test_a_model_that_is_being_downloaded_is_not_written_over_by_the_resumed_experiment(tmp_path):
    experiment = make_experiment(tmp_path)
    begin(experiment, "stop")
    with experiment.folder.open_model(experiment.folder.model_after(0)):
        assert resumed(experiment).folder.outdated_model() is None
    assert experiment.folder.outdated_model() is not None


def test_a_dropped_envoy_holds_no_round_up_and_stays_out_of_the_resumed_experiment(tmp_path):
    experiment = make_experiment(tmp_path, rounds=2, members="abc")

    async def story() -> None:
        async with running(experiment):
            await answer(experiment, "a")
            await answer(experiment, "b")
            experiment.scheduler.drop("c", "was dropped by operator 'olga'")
            await until(lambda: experiment.rounds.round_number == 1)
            assert await experiment.scheduler.wait_for_tasks("c") == ([], 1)
            experiment.stop()

    asyncio.run(story())
    [record] = experiment.folder.history
    assert record["refused"] == {"c": "left the experiment: was dropped by operator 'olga'"}
    assert record["notes"]["c"] == [record["refused"]["c"]]
    again = resumed(RunFolderOf(experiment))
    assert (again.state.members, [*again.state.departed]) == (["a", "b"], ["c"])


def test_of_a_failed_experiment_the_envoy_that_it_failed_on_can_be_dropped(tmp_path):
    experiment = make_experiment(tmp_path)
    begin(experiment, "fail")
    experiment.scheduler.drop("b", "was dropped")
    again = resumed(RunFolderOf(experiment))
    assert again.state.members == ["a"]
    play(again, serve(again, "a"))
    assert [[*record["envoys"]] for record in again.folder.history] == [["a", "b"], ["a"], ["a"]]


@pytest.mark.parametrize(
    ("members", "plan", "envoy", "sentence"),
    [
        ("ab", {}, "x", r"envoy 'x' is no member of experiment 'toy'; its members are \['a', 'b'\]"),
        ("ab", {"participation": QUORUM_OF_TWO}, "a", "could not reach its quorum without envoy 'a': stop it instead"),
        ("abc", {"aggregation": {"rule": {"rule": "trimmed_mean", "share": 0.34}}}, "a", "without envoy 'a': "),
    ],
)
def test_an_envoy_that_the_others_need_is_not_dropped(tmp_path, members, plan, envoy, sentence):
    experiment = make_experiment(tmp_path, members=members, **plan)
    with pytest.raises(SteeringError, match=sentence):
        experiment.scheduler.drop(envoy, "was dropped")
    assert experiment.state.members == list(members)


def test_the_only_one_who_trains_in_a_round_is_dropped_when_the_experiment_is_stopped(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"count": 1, "seed": 0})

    async def story() -> str:
        async with running(experiment):
            await until(lambda: experiment.phase is Phase.OPEN)
            [trainer] = experiment.rounds.participants
            with pytest.raises(SteeringError, match="round 0 of experiment 'toy' could not reach its quorum without"):
                experiment.scheduler.drop(trainer, "was dropped")
            experiment.stop()
            experiment.scheduler.drop(trainer, "was dropped")
            return trainer

    [other] = {"a", "b"} - {asyncio.run(story())}
    again = resumed(RunFolderOf(experiment))
    play(again, serve(again, other))
    assert [[*record["envoys"]] for record in again.folder.history] == [[other], [other]]


def test_the_director_resumes_an_experiment_and_its_envoy_hears_of_an_end_before(direct):
    async def story(director: Director) -> None:
        await register(director, "a")
        async with attending(director, "a") as order:
            orders: list[Order] = []
            experiment = await submit(director, "one")
            await is_running(experiment)
            with pytest.raises(SteeringError, match="experiment 'one' is in_progress: there is nothing to resume"):
                await director.resume("one")
            experiment.stop()
            director.assign()
            await director.resume("one")
            resumed = director.experiments["one"]
            assert resumed is not experiment
            await is_running(resumed)
            await until(lambda: orders.append(order()) or order().experiment == "one")
            assert director.federations["one"] is resumed

    direct(story)


def test_an_envoy_that_was_slow_to_hear_of_the_end_hears_of_it_before_the_resumed_one(direct):
    async def story(director: Director) -> None:
        await register(director, "a")
        orders = director.attend("a", "first")
        assert (await anext(orders)).experiment == ""
        experiment = await submit(director, "one")
        assert (await anext(orders)).experiment == "one"
        await is_running(experiment)
        experiment.stop()
        director.assign()
        await director.resume("one")
        await is_running(director.experiments["one"])
        assert [(await anext(orders)).experiment for _ in range(2)] == ["", "one"]
        await orders.aclose()

    direct(story)


def test_a_deleted_experiment_is_gone_from_the_disk_and_its_name_is_free(direct):
    async def story(director: Director) -> None:
        await register(director, "a")
        experiment = await submit(director, "one", weights=3)
        await is_running(experiment)
        with pytest.raises(SteeringError, match="experiment 'one' is in_progress: stop it first"):
            await director.delete("one", "user 'me'")
        experiment.stop()
        await director.delete("one", "user 'me'")
        assert [path.name for path in director.runs.iterdir()] == ["record.jsonl"]
        assert director.status(Caller("me")).experiments == []
        assert director.federations == {}
        with pytest.raises(SteeringError, match="experiment 'one' is deleted"):
            await director.resume("one")
        again = await submit(director, "one", weights=5)
        await is_running(again)
        assert again.folder.model_header.entries["weight"].shape == (5,)

    direct(story)


def test_an_experiment_that_cannot_be_taken_up_can_be_deleted(direct):
    async def story(director: Director) -> None:
        await register(director, "a")
        await submit(director, "broken")
        director.experiments["broken"].stop()
        (director.runs / "broken/experiment.json").write_text("{")
        other = Director(director.runs, 60)
        await other.recover()
        assert [*other.unusable] == ["broken"]
        await other.delete("broken", "operator 'olga'")
        assert other.unusable == {}
        assert [path.name for path in director.runs.iterdir()] == ["record.jsonl"]

    direct(story)


def test_finished_experiments_are_not_resumed(direct):
    async def story(director: Director) -> None:
        await register(director, "a")
        experiment = await submit(director, "one", rounds=1)
        for _ in range(2):
            await test_director.answer(experiment, "a")
            await asyncio.sleep(0)
        await until(lambda: status_of(director, "one") is Status.FINISHED)
        with pytest.raises(SteeringError, match="experiment 'one' has finished: start another one from its model"):
            await director.resume("one")

    direct(story)


def test_people_see_by_their_roles_what_is_others():
    assert Caller("ada").sees("ada")
    assert Caller("ada").sees("")
    assert not Caller("ada").sees("bob")
    assert Caller("olga", "operator").sees("bob")
    assert Caller("max", "monitor").sees("bob")


def test_experiments_that_have_ended_are_kept_as_long_as_the_settings_say_and_running_ones_always(direct):
    async def story(director: Director) -> None:
        await register(director, "abc")
        for name, envoy in (("first", "a"), ("second", "b"), ("third", "c")):
            await is_running(await submit(director, name, envoys=[envoy]))
        director.experiments["first"].stop()
        director.experiments["second"].fail("no luck")
        director.experiments["first"].state.ended_at -= 10
        director.experiments["third"].state.submitted += 100  # it counts for nothing
        retaining = asyncio.create_task(director.retain(Retention(experiments=1)))
        await until(lambda: "first" not in director.experiments)
        await asyncio.sleep(0.05)
        assert [*director.experiments] == ["second", "third"]
        retaining.cancel()
        retaining = asyncio.create_task(director.retain(Retention(days=0)))
        await until(lambda: [*director.experiments] == ["third"])
        retaining.cancel()

    direct(story)
