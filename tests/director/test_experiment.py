import asyncio
import contextlib
import io
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from director.experiment import Experiment
from director.run_folder import RunFolder, Status
from federation.participation import Participation
from federation.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL, BestModel, ExperimentPlan, Task
from federation.rounds import UpdateRefusedError
from federation.tensors import Header, TensorFile, TensorFormatError, Tensors, receive, stream, write_tensors
from federation.wire import TaskResult, UpdateMessage

VALIDATE = Task(name="aggregated_model_validate", function_name="validate", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")
MODEL = {"weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "steps": np.array(0)}
CLIPS = {"a": 3, "b": 50, "c": 7, "d": 11}
QUORUM_OF_TWO = {"deadline_seconds": 1000, "quorum": 2}
SECONDS = 5  # more than any of these experiments takes


def make_experiment(
    tmp_path: Path,
    name: str = "toy",
    rounds: int = 2,
    members: str = "ab",
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
    folder.state.members = list(members)
    folder.save_state()
    return Experiment(folder, is_online)


def load(path: Path) -> Tensors:
    with TensorFile(path) as file:
        return file.load()


def train(envoy: str, round_number: int, model: Tensors) -> Tensors:
    """What the envoy makes of the model: a function of its name and of the round."""
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
    return float(model["weight"].sum()) + ord(envoy)


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

    return await experiment.receive_update(update, Header.unpack(header), in_halves())


def results_of(envoy: str, tasks: Iterable[Task], model: Tensors) -> dict[str, TaskResult]:
    metrics = {"train": {"loss": 1.0}, VALIDATE.name: {"score": score_of(envoy, model)}}
    return {task.name: TaskResult(size=CLIPS[envoy], metrics=metrics[task.name]) for task in tasks}


async def answer(experiment: Experiment, envoy: str, change: Callable[[Tensors], Tensors] = lambda t: t) -> int:
    """Do one round as an envoy does it. Returns the round's number, or -1 when there is nothing left to do."""
    tasks, round_number = await experiment.wait_for_tasks(envoy)
    if not tasks:
        return -1
    model, metadata = receive(experiment.global_model())
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
        return (await asyncio.wait_for(asyncio.gather(experiment.run(nothing), *others), SECONDS))[1:]

    return asyncio.run(together())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(experiment: Experiment) -> AsyncIterator[None]:
    """The experiment runs beside the block, and its director is killed at the end of it, unless it has ended."""
    task = asyncio.create_task(experiment.run(nothing))
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
        assert experiment.summary()["waiting_for"] == ["b"]
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
        tasks, round_number = await experiment.wait_for_tasks("b")
        tensors = change(train("b", round_number, receive(experiment.global_model())[0]))
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


def test_when_all_updates_are_refused_the_experiment_fails_with_the_reasons(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def bad(envoy: str) -> None:
        with pytest.raises(UpdateRefusedError):
            await answer(experiment, envoy, lambda tensors: tensors | {"weight": tensors["weight"] * np.float32("nan")})

    play(experiment, bad("a"), bad("b"))
    assert experiment.state.status is Status.FAILED
    for envoy in "ab":
        sentence = f"update of envoy '{envoy}' for round 0: tensor 'weight' holds NaN or infinity"
        assert sentence in experiment.state.error
    assert_model(experiment.folder.named_model("last"), MODEL)
    assert RunFolder.load(experiment.folder.path).state.status is Status.FAILED


def test_an_update_for_a_round_to_come_is_refused_and_the_envoy_may_still_answer(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def hasty() -> None:
        tasks, _ = await experiment.wait_for_tasks("a")
        with pytest.raises(UpdateRefusedError, match="for round 1: round 0 asks for"):
            await send(experiment, "a", 1, train("a", 0, MODEL), results_of("a", tasks, MODEL))
        await serve(experiment, "a")

    play(experiment, hasty(), serve(experiment, "b"))
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_an_update_of_nobody_who_was_asked_is_refused_and_the_round_goes_on(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def stranger() -> None:
        tasks, _ = await experiment.wait_for_tasks("a")
        with pytest.raises(UpdateRefusedError, match="round 0 asks for nothing from it"):
            await send(experiment, "c", 0, train("c", 0, MODEL), results_of("c", tasks, MODEL))
        await serve(experiment, "a")

    play(experiment, stranger(), serve(experiment, "b"))
    assert experiment.folder.history[0]["refused"] == {}
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


def test_a_late_update_is_dropped_without_a_word(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation={"deadline_seconds": 0.1})

    async def late() -> bool:
        tasks, _ = await experiment.wait_for_tasks("b")
        await until(lambda: experiment.rounds.round_number == 1)
        return await send(experiment, "b", 0, train("b", 0, MODEL), results_of("b", tasks, MODEL))

    _, counted = play(experiment, serve(experiment, "a"), late())
    assert counted is False
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "a", 0))


def test_an_update_that_arrives_twice_at_once_counts_once(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, tasks=[TRAIN])

    async def twice() -> list[bool]:
        tasks, _ = await experiment.wait_for_tasks("a")
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
        tasks, _ = await experiment.wait_for_tasks("a")
        update = UpdateMessage(experiment="toy", envoy="a", round=0, results=results_of("a", tasks, MODEL))
        header, *pieces = stream(train("a", 0, MODEL), update.model_dump())

        async def break_off() -> AsyncIterator[bytes]:
            yield pieces[0][:10]
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await experiment.receive_update(update, Header.unpack(header), break_off())
        (path,) = experiment.folder.updates()
        with pytest.raises(TensorFormatError):
            TensorFile(path)
        await serve(experiment, "a")

    play(experiment, broken(), serve(experiment, "b"))
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ab", 0))


COUNT_TWO = {"count": 2, "seed": 4}


def final_model(tmp_path: Path, **plan: Any) -> bytes:
    """Of an experiment of four envoys that nobody disturbs."""
    experiment = make_experiment(tmp_path, name="undisturbed", members="abcd", **plan)
    play(experiment, *[serve(experiment, envoy) for envoy in "abcd"])
    return experiment.folder.named_model("last").read_bytes()


async def answer_first(experiment: Experiment, round_number: int) -> str:
    """Serve until in `round_number` the first of those asked has answered. Returns its name."""
    while experiment.rounds.round_number < round_number or not experiment._accepts_updates:
        for envoy in list(experiment.rounds.asked):
            if experiment.rounds.round_number < round_number and experiment.rounds.tasks_for(envoy):
                await answer(experiment, envoy)
        await asyncio.sleep(0.001)
    first = next(iter(experiment.rounds.asked))
    await answer(experiment, first)
    return first


@pytest.mark.parametrize(
    "plan",
    [
        {"participation": COUNT_TWO},
        {"aggregation": {"server_optimizer": {"optimizer": "adam"}}},
        {"participation": COUNT_TWO, "precision": "float16"},
    ],
    ids=["two of four", "with a server optimizer", "in float16"],
)
def test_after_a_restart_in_mid_round_the_same_envoys_make_the_same_model_to_the_bit(tmp_path, plan):
    expected = final_model(tmp_path, rounds=3, **plan)
    experiment = make_experiment(tmp_path, rounds=3, members="abcd", **plan)

    async def until_killed() -> tuple[str, list[str]]:
        async with running(experiment):
            first = await answer_first(experiment, round_number=1)
            return first, list(experiment.rounds.asked)

    first, asked = asyncio.run(until_killed())
    assert experiment.state.status is Status.IN_PROGRESS

    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    done = dict(zip("abcd", play(again, *[serve(again, envoy) for envoy in "abcd"]), strict=True))
    assert again.state.status is Status.FINISHED
    assert sorted(envoy for envoy in done if 1 in done[envoy]) == [envoy for envoy in asked if envoy != first]
    assert sorted(again.folder.history[1]["envoys"]) == asked
    assert [record["round"] for record in again.folder.history] == [0, 1, 2, 3]
    assert again.folder.named_model("last").read_bytes() == expected


def test_after_a_restart_a_draw_among_those_who_were_there_stays_although_others_are_there_now(tmp_path):
    participation = {"count": 2, "seed": 1, "deadline_seconds": 1000}
    experiment = make_experiment(
        tmp_path, rounds=1, members="abcd", participation=participation, is_online=lambda envoy: envoy in "cd"
    )

    async def until_killed() -> None:
        async with running(experiment):
            await answer_first(experiment, round_number=0)

    asyncio.run(until_killed())
    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[0]["envoys"]) == ["c", "d"]


def test_after_a_restart_an_envoy_that_left_is_not_asked_again(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 1000})

    async def until_killed() -> None:
        async with running(experiment):
            await answer_first(experiment, round_number=0)
            experiment.leave("b", "out of memory")

    asyncio.run(until_killed())
    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    assert again.state.left == {"b": "out of memory"}
    play(again, serve(again, "a"), serve(again, "c"))
    assert [record["missing"] for record in again.folder.history] == [[], []]


@pytest.mark.parametrize("spoil", ["cut short", "of another round", "of a stranger", "other bytes"])
def test_after_a_restart_a_file_that_is_no_update_of_this_round_is_left_out(tmp_path, spoil):
    expected = final_model(tmp_path, rounds=1)
    experiment = make_experiment(tmp_path, rounds=1, members="abcd")

    async def until_killed() -> Path:
        async with running(experiment):
            return experiment._updates[await answer_first(experiment, round_number=0)][0]

    path = asyncio.run(until_killed())
    with TensorFile(path) as file:
        tensors, metadata = file.load(), file.header.metadata
    if spoil == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif spoil == "of another round":
        write_tensors(path, tensors, metadata | {"round": 1})
    elif spoil == "of a stranger":
        write_tensors(path, tensors, metadata | {"envoy": "mallory"})
    else:
        path.write_bytes(b"hello")
    again = Experiment(RunFolder.load(experiment.folder.path), lambda _: True)
    play(again, *[serve(again, envoy) for envoy in "abcd"])
    assert sorted(again.folder.history[0]["envoys"]) == list("abcd")
    assert again.folder.named_model("last").read_bytes() == expected


def test_a_stop_ends_all_waiting_at_once_and_keeps_history_and_models(tmp_path):
    experiment = make_experiment(tmp_path, rounds=9)

    async def stop() -> None:
        await until(lambda: experiment.rounds.round_number == 1 and "a" in experiment.rounds.results)
        experiment.stop()

    async def b_answers_once() -> tuple[list[Task], int]:
        await answer(experiment, "b")
        await until(lambda: experiment.ended)
        return await experiment.wait_for_tasks("c")

    async def history() -> list[int]:
        return [record["round"] async for record in experiment.history()]

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
        task = asyncio.create_task(experiment.run(nothing))
        experiment.stop()
        await asyncio.wait_for(task, SECONDS)

    with contextlib.suppress(asyncio.TimeoutError):
        asyncio.run(stop_at_once())
    assert experiment.state.status is Status.STOPPED


def test_an_update_after_the_end_is_dropped(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def stop_then_send() -> bool:
        tasks, _ = await experiment.wait_for_tasks("a")
        experiment.stop()
        return await send(experiment, "a", 0, train("a", 0, MODEL), results_of("a", tasks, MODEL))

    assert play(experiment, stop_then_send()) == [False]


def test_without_a_deadline_the_experiment_fails_with_the_envoy_that_leaves(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def leave() -> None:
        await experiment.wait_for_tasks("b")
        experiment.leave("b", "Traceback\nValueError: no such file")

    play(experiment, serve(experiment, "a"), leave())
    assert experiment.state.status is Status.FAILED
    assert experiment.state.error == "envoy 'b': Traceback\nValueError: no such file"


@pytest.mark.parametrize("reason", ["killed by SIGKILL\nand more", ""])
def test_with_a_deadline_the_others_go_on_at_once_and_for_good(tmp_path, reason):
    experiment = make_experiment(
        tmp_path, rounds=1, members="abc", participation={"deadline_seconds": 1000, "quorum": 2}
    )

    async def leave() -> None:
        await experiment.wait_for_tasks("b")
        experiment.leave("b", reason)

    play(experiment, serve(experiment, "a"), leave(), serve(experiment, "c"))
    assert experiment.state.status is Status.FINISHED
    first, last = experiment.folder.history
    assert first["refused"].keys() == {"b"}
    assert first["refused"]["b"] == reason.split("\n")[0]
    assert (last["refused"], last["missing"]) == ({}, [])
    assert (experiment.state.members, experiment.state.left) == (["a", "c"], {"b": reason})
    assert_model(experiment.folder.named_model("last"), next_model(MODEL, "ac", 0))


def test_below_the_quorum_nobody_goes_on(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, participation=QUORUM_OF_TWO)

    async def leave() -> None:
        await experiment.wait_for_tasks("b")
        experiment.leave("b", "out of memory")

    play(experiment, serve(experiment, "a"), leave())
    assert experiment.state.status is Status.FAILED
    assert "out of memory" in experiment.state.error


def test_patience_ends_the_experiment_early(tmp_path):
    experiment = make_experiment(tmp_path, rounds=9, patience=2, tasks=[VALIDATE])
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    assert experiment.state.status is Status.FINISHED
    assert [record["best"] for record in experiment.folder.history] == [True, False, False]


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
        seen.append(receive(experiment.global_model())[0])
        await serve(experiment, "a")

    play(experiment, watch(), serve(experiment, "b"))
    assert seen[0]["weight"].dtype == np.float16
    assert seen[0]["steps"].dtype == MODEL["steps"].dtype
    model = MODEL
    for round_number in range(2):
        model = next_model(model, "ab", round_number, "float16")
    assert_model(experiment.folder.named_model("last"), model)
    assert load(experiment.folder.named_model("last"))["weight"].dtype == np.float32


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


def test_history_follows_a_running_experiment_to_its_end(tmp_path):
    experiment = make_experiment(tmp_path, rounds=2)

    async def follow() -> list[int]:
        return [record["round"] async for record in experiment.history()]

    outcome = play(experiment, follow(), serve(experiment, "a"), serve(experiment, "b"), follow())
    assert outcome[0] == outcome[3] == [0, 1, 2]


def test_a_disk_that_cannot_be_read_fails_the_experiment_and_says_so(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)

    async def lose_an_update() -> None:
        await answer(experiment, "a")
        experiment._updates["a"][0].unlink()
        await answer(experiment, "b")

    play(experiment, lose_an_update())
    assert experiment.state.status is Status.FAILED
    assert "the director cannot read or write: " in experiment.state.error
    assert "No such file" in experiment.state.error


def test_a_summary_says_who_is_waited_for(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, corpus="superb")

    async def look() -> dict[str, Any]:
        await answer(experiment, "a")
        summary = experiment.summary()
        await asyncio.gather(serve(experiment, "a"), serve(experiment, "b"))
        return summary

    (during,) = play(experiment, look())
    assert during == {
        "name": "toy", "owner": "me", "corpus": "superb", "status": "in_progress", "round": 0, "rounds": 1,
        "best": {"metric": "score", "direction": "max"}, "envoys": ["a", "b"],
        "waiting_for": ["b"], "seconds_per_round": None, "error": "",
    }  # fmt: skip
    after = experiment.summary()
    assert (after["status"], after["waiting_for"], after["round"]) == ("finished", [], 2)
    assert after["seconds_per_round"] == experiment.folder.history[-1]["seconds"]
