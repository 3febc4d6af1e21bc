"""Envoys and directors killed with -9 in the middle of their work, and started again by the same command."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest
import torch

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.notebook.interactive_api import ModelInterface
from openfl_audio.protocol.participation import Participation
from tests.integration.conftest import ENVOYS, READY_SECONDS, points, wait_for

pytestmark = pytest.mark.integration

ROUNDS = 8
numbers = itertools.count()
# Envoys 'a' and 'b' add 1 and 3 to every weight, and weigh as much.
GROWTH = {("a",): 1.0, ("b",): 3.0, ("a", "b"): 2.5}


@pytest.fixture
def start(running: LocalFederation, connect: Callable) -> Iterator[Callable]:
    import toy
    from toy.experiment import PointsData, add_points_slowly, first_weight, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    started = []

    def start(model=None, **changes):
        experiment = FLExperiment(connect(running), f"killed-{next(numbers)}", toy)
        settings = {
            "model_provider": model or model_interface(),
            "task_keeper": task_interface(train=add_points_slowly, validate=first_weight),
            "data_loader": PointsData(),
            "rounds_to_train": ROUNDS,
        }
        experiment.start(**settings | changes)
        started.append(experiment)
        return experiment

    yield start
    # After a failure it would keep the envoys from the next test.
    for experiment in started:
        if experiment.get_experiment_status() != "finished":
            experiment.stop()


def kill(running: LocalFederation, name: str) -> None:
    os.kill(running.pid(name), signal.SIGKILL)
    running.wait_for_exit(name, READY_SECONDS)


def kill_while(running: LocalFederation, name: str, condition: Callable[[], object]) -> None:
    """Kill a process at a moment at which `condition` holds: it is stopped first, and runs on if that was too late."""
    process = psutil.Process(running.pid(name))
    while True:
        wait_for(condition, interval=0.0005)
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        if condition():
            break
        process.resume()
    kill(running, name)


def records(experiment) -> list[dict]:
    return list(experiment.federation.dir_client.read_history(experiment.experiment_name))


def weights_follow_from_who_answered(history: list[dict]) -> bool:
    """Is the model of every round what the envoys' answers of the rounds before have made of it?"""
    slope = 0.0
    for record in history:
        if record["metrics"]["aggregated_model_validate"]["slope"] != slope:
            return False
        slope += GROWTH[tuple(record["envoys"])]
    return True


def test_a_round_closes_without_a_killed_envoy_and_it_takes_part_again_when_it_is_back(running, start):
    experiment = start(participation=Participation(deadline_seconds=4.0), rounds_to_train=1000)

    def last() -> dict:
        return (records(experiment) or [{"envoys": []}])[-1]

    # A worker that is slow to start misses the first rounds' deadline too.
    wait_for(lambda: list(last()["envoys"]) == ["a", "b"])
    kill(running, "b")
    killed_in = last()["round"] + 1
    without = wait_for(lambda: [r for r in records(experiment)[killed_in:] if r["missing"] == ["b"]])[-1]
    assert list(without["envoys"]) == ["a"]
    assert without["seconds"] >= 4.0, "it was waited for until the deadline"

    running.start_envoy("b", points(ENVOYS["b"]))
    wait_for(lambda: list(last()["envoys"]) == ["a", "b"])
    experiment.stop()
    assert weights_follow_from_who_answered(records(experiment))


def restart_director(running: LocalFederation) -> None:
    running.start_director()
    running.wait_until_ready(ENVOYS, READY_SECONDS)


def check_end(experiment, participation: Participation) -> None:
    """Fail unless every round had the envoys that were drawn for it, and the last weights are what they made."""
    drawn = [participation.trainers(number, ENVOYS) for number in range(ROUNDS)]
    kept = records(experiment)
    assert [record["round"] for record in kept] == list(range(ROUNDS + 1))
    assert [list(record["envoys"]) for record in kept[:ROUNDS]] == drawn
    assert weights_follow_from_who_answered(kept[:ROUNDS])
    final = sum(GROWTH[tuple(names)] for names in drawn)
    assert torch.equal(experiment.last_model().weight, torch.full((3000, 3000), final))
    assert experiment.get_experiment_status() == "finished"


@pytest.fixture
def large() -> ModelInterface:
    from toy.experiment import create_large_model

    return ModelInterface(create_large_model, partial(torch.optim.SGD, lr=0.1))


@pytest.mark.slow
def test_a_director_killed_twice_resumes_with_the_same_round_and_envoys_to_the_same_weights(running, start, large):
    # One of the two by lot: a restart must draw the same.
    participation = Participation(count=1, seed=3, min_members=2)
    experiment = start(large, participation=participation)
    wait_for(lambda: len(records(experiment)) >= 2)
    kill(running, "director")  # in mid-round
    restart_director(running)

    models = running.folder / "director" / experiment.experiment_name / "models"
    wait_for(lambda: len(records(experiment)) >= 3)
    kill_while(running, "director", lambda: list(models.glob(".*.partial")))  # in the middle of a checkpoint
    restart_director(running)
    experiment.watch()
    check_end(experiment, participation)


def test_a_director_killed_with_one_update_counted_waits_for_the_other_and_shows_all_when_killed_after_the_end(
    running, start, large
):
    participation = Participation(count=2, seed=3, min_members=2)
    experiment = start(large, participation=participation)
    updates = running.folder / "director" / experiment.experiment_name / "updates"
    wait_for(lambda: len(records(experiment)) >= 2)
    kill_while(running, "director", lambda: list(updates.glob("*.safetensors")))
    restart_director(running)
    assert experiment.watch()["round"].tolist() == list(range(ROUNDS + 1))
    check_end(experiment, participation)

    kill(running, "director")
    restart_director(running)
    assert experiment.history["round"].tolist() == list(range(ROUNDS + 1))
    check_end(experiment, participation)
