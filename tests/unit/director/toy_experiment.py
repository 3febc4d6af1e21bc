"""An experiment of a toy model with envoys that answer as functions do, all in one process."""

import asyncio
import contextlib
import io
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from openfl_audio.director.experiment import Experiment
from openfl_audio.director.run_folder import RunFolder
from openfl_audio.protocol.messages import TaskResult, UpdateMessage
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.record import RECORD, Record
from openfl_audio.protocol.tensors import CHUNK_BYTES, Header, TensorFile, Tensors, receive, stream

VALIDATE = Task(name="aggregated_model_validate", function_name="validate", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")
MODEL = {"weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "steps": np.array(0)}
CLIPS = {"a": 3, "b": 50, "c": 7, "d": 11}
QUORUM_OF_TWO = {"deadline_seconds": 1000, "quorum": 2}
SECONDS = 60  # more than any of these experiments takes


def make_experiment(
    tmp_path: Path,
    name: str = "toy",
    rounds: int = 2,
    members: Collection[str] = "ab",
    patience: int | None = None,
    participation: dict[str, Any] | None = None,
    is_online: Callable[[str], bool] = lambda _: True,
    also_best: dict[str, str] | None = None,
    **plan: Any,
) -> Experiment:
    plan = {"tasks": [VALIDATE, TRAIN]} | plan
    plan = ExperimentPlan(
        name=name,
        federation_uuid="uuid",
        rounds=rounds,
        best=BestModel(metric="score", direction="max", others=also_best or {}, patience=patience),
        participation=Participation(**(participation or {})),
        **plan,
    )
    workspace = io.BytesIO()
    with zipfile.ZipFile(workspace, "w") as zipped:
        zipped.writestr("plan/plan.yaml", "")
    with zipfile.ZipFile(tmp_path / "submission", "w") as zipped:
        zipped.writestr(EXPERIMENT_PLAN, plan.model_dump_json())
        zipped.writestr(ARCHIVE, workspace.getvalue())
        zipped.writestr(INITIAL_MODEL, safetensors.numpy.save(MODEL))
    folder = RunFolder.create(tmp_path, tmp_path / "submission", "me")
    folder.accept(list(members), {})
    return Experiment(folder, Record(tmp_path / RECORD, "director 'director'"), is_online)


def load(path: Path) -> Tensors:
    with TensorFile(path) as file:
        return file.load()


def global_model(experiment: Experiment) -> tuple[Tensors, dict[str, Any]]:
    """Return what an envoy gets: the model and its metadata."""
    return receive(experiment.scheduler.global_model("a", repeat(CHUNK_BYTES)))


def train(envoy: str, round_number: int, model: Tensors) -> Tensors:
    """Return what the envoy makes of the model: a function of its name and of the round."""
    change = np.random.default_rng([ord(envoy), round_number]).normal(size=MODEL["weight"].shape)
    weight = (0.5 * model["weight"] + change).astype(model["weight"].dtype)
    return {"weight": weight, "steps": model["steps"] + CLIPS[envoy]}


def next_model(model: Tensors, envoys: Iterable[str], round_number: int, precision: str = "float32") -> Tensors:
    """FedAvg in NumPy: the mean change to the model, summed in float32. One update alone is the next model."""
    travelled = model | {"weight": model["weight"].astype(precision)}
    trained = {envoy: train(envoy, round_number, travelled) for envoy in sorted(envoys)}
    steps = np.max([tensors["steps"] for tensors in trained.values()])
    weights = {envoy: tensors["weight"].astype(np.float32) for envoy, tensors in trained.items()}
    if len(weights) == 1:
        return {"weight": weights.popitem()[1], "steps": steps}
    total = sum(np.float32(CLIPS[envoy]) * (weight - model["weight"]) for envoy, weight in weights.items())
    return {"weight": model["weight"] + total / np.float32(sum(CLIPS[envoy] for envoy in weights)), "steps": steps}


def score_of(envoy: str, model: Tensors) -> float:
    return float(model["weight"].sum()) + sum(map(ord, envoy))


async def send(
    experiment: Experiment,
    envoy: str,
    round_number: int,
    tensors: Tensors,
    results: dict[str, TaskResult],
    cut: int = 0,
    extra: bytes = b"",
) -> bool:
    update = UpdateMessage(experiment=experiment.plan.name, envoy=envoy, round=round_number, results=results)
    header, *pieces = stream(tensors, update.model_dump())
    data = b"".join(pieces)
    data = data[: len(data) - cut] + extra

    async def in_halves() -> AsyncIterator[bytes]:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            await asyncio.sleep(0)
            yield half

    return await experiment.intake.receive(update, Header.unpack(header), in_halves())


def results_of(envoy: str, tasks: Iterable[Task], model: Tensors) -> dict[str, TaskResult]:
    metrics = {"train": {"loss": 1.0}, VALIDATE.name: {"score": score_of(envoy, model)}}
    return {task.name: TaskResult(size=CLIPS[envoy], metrics=metrics[task.name]) for task in tasks}


async def answer(experiment: Experiment, envoy: str, change: Callable[[Tensors], Tensors] = lambda t: t) -> int:
    """Do one round as an envoy does it. Returns the round's number, or -1 when there is nothing left to do."""
    tasks, round_number = await experiment.scheduler.wait_for_tasks(envoy)
    if not tasks:
        return -1
    model, metadata = global_model(experiment)
    assert metadata["round"] == round_number
    trains = any(task.task_type == "train" for task in tasks)
    tensors = change(train(envoy, round_number, model)) if trains else {}
    await send(experiment, envoy, round_number, tensors, results_of(envoy, tasks, model))
    return round_number


async def serve(experiment: Experiment, envoy: str) -> list[int]:
    """An envoy that does what it is asked until the experiment ends. Returns its rounds."""
    rounds = []
    while not experiment.ended:
        round_number = await answer(experiment, envoy)
        if round_number >= 0:
            rounds.append(round_number)
    return rounds


def nothing() -> None:
    pass


def play(experiment: Experiment, *others: Coroutine) -> list[Any]:
    """Run the experiment together with `others` until all have ended; returns what the others do."""

    async def together() -> list[Any]:
        return (await asyncio.wait_for(asyncio.gather(experiment.scheduler.run(nothing), *others), SECONDS))[1:]

    return asyncio.run(together())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(experiment: Experiment) -> AsyncIterator[None]:
    """The experiment runs beside the block, and its director is killed at the end of it, unless it has ended."""
    task = asyncio.create_task(experiment.scheduler.run(nothing))
    try:
        yield
    finally:
        while not task.done():  # asyncio.wait_for of Python 3.11 and earlier may lose a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=0.05)


def assert_model(path: Path, expected: Tensors) -> None:
    found = load(path)
    np.testing.assert_array_equal(found["weight"], expected["weight"])
    assert found["steps"] == expected["steps"]
