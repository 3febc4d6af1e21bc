import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from openfl.federated import Plan
from openfl.interface.interactive_api.experiment import TaskInterface

from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.node.task_runner import TaskRunner
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.protocol.plan import Task
from openfl_audio.protocol.tensors import Tensors
from tests.unit import toy

VALIDATE = Task(name="aggregated_model_validate", function_name="measure", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")


def make_runner(
    fit: Callable = toy.fit,
    measure: Callable = toy.measure,
    model: Callable = toy.Line,
    optimizer: Callable = toy.PLAIN,
    treatment: str = "RESET",
    seed: int = 0,
    client: str = "a-5",
) -> TaskRunner:
    tasks = TaskInterface()
    contract = {"model": "model", "data_loader": "points", "device": "device"}
    for name, function in (("fit", fit), ("measure", measure)):
        named = partial(function)
        named.__name__ = name
        extra = {"optimizer": "optimizer", "round_num": "round_number"} if name == "fit" else {}
        tasks.register_fl_task(**contract, **extra)(named)
    data = toy.Data()
    data.shard_descriptor = toy.Points(client)
    runner = TaskRunner()
    runner.seed = seed
    runner.set_optimizer_treatment(treatment)
    runner.set_data_loader(data)
    runner.set_model_provider(ModelInterface(model, optimizer))
    runner.set_framework_adapter(Plan.build(ModelInterface(model, optimizer).framework_plugin, {}))
    runner.set_task_provider(tasks)
    return runner


def first_tensors(with_optimizer: bool = False, optimizer: Callable = toy.PLAIN) -> Tensors:
    tensors = ModelInterface(toy.Line, optimizer).initial_tensors(with_optimizer)
    return {name: tensor.copy() for name, tensor in tensors.items()}


def run(runner: TaskRunner, *tasks: Task, round_number: int = 0, client: str = "a-5") -> tuple[dict, Tensors]:
    results, trained = runner.run_tasks(tasks, round_number, client, first_tensors(), "cpu")
    return results, {name: tensor.copy() for name, tensor in trained.items()}


def draw(model, points, device, optimizer=None, round_number=None) -> dict[str, float]:
    return {"random": random.random(), "numpy": np.random.rand(), "torch": torch.rand(1).item()}


def draws(seed: int = 0, round_number: int = 0, client: str = "a-5", task: Task = TRAIN) -> dict[str, float]:
    runner = make_runner(fit=draw, measure=draw, seed=seed)
    random.seed()
    np.random.seed()
    torch.seed()
    results, _ = run(runner, task, round_number=round_number, client=client)
    return results[task.name].metrics


def test_what_a_task_draws_is_a_function_of_seed_round_client_and_task():
    first = draws()
    assert draws() == first
    for other in ({"seed": 1}, {"round_number": 1}, {"client": "b-5"}, {"task": VALIDATE}):
        drawn = draws(**other)
        assert not set(drawn.values()) & set(first.values()), other


def test_what_a_task_draws_does_not_depend_on_the_tasks_before():
    runner = make_runner(fit=draw, measure=draw)
    alone, _ = run(runner, TRAIN)
    after_others, _ = run(runner, VALIDATE, TRAIN)
    assert after_others["train"] == alone["train"]


class DrawnLine(toy.Line):
    """A model with a frozen tensor that the recipe draws: it is never sent."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.normal_(self.scale)


def test_what_a_recipe_draws_is_a_function_of_the_seed():
    def scale(seed: int) -> float:
        return make_runner(model=DrawnLine, seed=seed).model.scale.item()

    assert scale(3) == scale(3)
    assert scale(3) != scale(4)


def fit_and_leave_gradients(model, points, device, optimizer, round_number) -> dict[str, float]:
    """Clears gradients after its step, and so relies on clear ones; the last ones are left behind."""
    toy.loss_of(model, points).backward()
    optimizer.step()
    optimizer.zero_grad()
    toy.loss_of(model, points).backward()
    return {}


def test_gradients_that_a_task_leaves_behind_are_not_the_next_ones():
    runner = make_runner(fit=fit_and_leave_gradients)
    _, first = run(runner, TRAIN)
    _, second = run(runner, TRAIN)
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor)


def test_a_mode_that_a_task_leaves_behind_is_not_the_next_ones():
    class Partly(toy.Line):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Dropout().eval()

    modes = []

    def note(model, points, device, optimizer=None, round_number=None) -> dict[str, float]:
        modes.append((model.training, model.line.training, model.frozen.training))
        model.train(not model.training)
        return {}

    runner = make_runner(fit=note, measure=note, model=Partly)
    run(runner, VALIDATE, TRAIN)
    run(runner, TRAIN)
    assert modes == [(True, True, False)] * 3


class Stateful(toy.Line):
    """Has a state of each kind that does not travel."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [0]
        self.register_buffer("gain", torch.ones(2), persistent=False)
        self.register_buffer("window", torch.ones(2), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def get_extra_state(self) -> list[int]:
        return self.steps

    def set_extra_state(self, state: list[int]) -> None:
        self.steps = state

    def untravelled(self) -> list:
        return [list(self.steps), self.gain.tolist(), self.window.tolist(), self.cache]


def test_what_does_not_travel_begins_each_task_as_the_recipe_built_it():
    seen = []

    def change(model, points, device, optimizer=None, round_number=None) -> dict[str, float]:
        seen.append(model.untravelled())
        model.steps[0] += 1  # in place and by another object
        model.gain += 1
        model.window = torch.zeros(3)
        model.cache = torch.zeros(1)
        return {}

    runner = make_runner(fit=change, measure=change, model=Stateful)
    run(runner, VALIDATE, TRAIN)
    run(runner, TRAIN, client="b-5")
    assert seen == [[[0], [1, 1], [1, 1], None]] * 3


@pytest.mark.parametrize(
    ("treatment", "kept"), [("RESET", False), ("CONTINUE_GLOBAL", False), ("CONTINUE_LOCAL", True)]
)
def test_a_learning_rate_that_a_task_changed_stays_only_where_the_optimizer_does(treatment: str, kept: bool):
    rates = []

    def decay(model, points, device, optimizer, round_number) -> dict[str, float]:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["lr"] /= 2
        return toy.fit(model, points, device, optimizer, round_number)

    runner = make_runner(fit=decay, optimizer=toy.MOMENTUM, treatment=treatment)
    tensors = first_tensors(treatment == "CONTINUE_GLOBAL", toy.MOMENTUM)
    for round_number in range(2):
        _, tensors = runner.run_tasks([TRAIN], round_number, "a-5", tensors, "cpu")
        tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    assert rates == [toy.RATE, toy.RATE / 2 if kept else toy.RATE]


def test_a_client_without_clips_runs_no_task():
    def fail(*_: Any, **__: Any) -> dict[str, float]:
        raise AssertionError("it ran")

    results, trained = run(make_runner(fit=fail, measure=fail, client="a-0"), VALIDATE, TRAIN)
    assert [(name, result.size, result.metrics) for name, result in results.items()] == [
        ("aggregated_model_validate", 0, {}),
        ("train", 0, {}),
    ]
    assert trained == {}


class Sized(toy.Data):
    """Says that it has `size` clips."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.get_train_data_size = self.get_valid_data_size = lambda: size


def run_with_size(size: Any, *tasks: Task) -> dict[str, TaskResult]:
    runner = make_runner()
    data = Sized(size)
    data.shard_descriptor = toy.Points("a-5")
    runner.set_data_loader(data)
    return run(runner, *tasks)[0]


@pytest.mark.parametrize("size", [6, np.int64(6), np.uint8(6), np.array(6), torch.tensor(6)], ids=repr)
def test_an_integer_of_any_kind_is_a_size(size):
    results = run_with_size(size, VALIDATE, TRAIN)
    assert [result.size for result in results.values()] == [6, 6]


@pytest.mark.parametrize("size", [np.int64(0), torch.tensor(0)], ids=repr)
def test_a_zero_of_any_kind_says_that_there_is_nothing_to_do(size):
    assert run_with_size(size, TRAIN)["train"] == TaskResult(size=0, metrics={})


@pytest.mark.parametrize("size", [6.0, np.float64(6), np.array([6, 1]), None, "6", True, -1, 2 * 10**9], ids=repr)
def test_another_size_is_refused_with_the_name_of_the_method(size):
    for task, method in ((TRAIN, "get_train_data_size"), (VALIDATE, "get_valid_data_size")):
        sentence = f"{method} of Sized returned .*{type(size).__name__}.*the number of clips, an integer from 0 to"
        with pytest.raises(ValueError, match=sentence):
            run_with_size(size, task)


def returning(value: Any) -> Callable:
    def task(model, points, device, **_):
        return value

    return task


def test_a_mean_with_a_count_gives_both():
    metrics = {"loss": 2.0, "wer": MeanOver(0.25, 412)}
    results, _ = run(make_runner(measure=returning(metrics)), VALIDATE)
    assert results[VALIDATE.name] == TaskResult(size=5, metrics={"loss": 2.0, "wer": 0.25}, counts={"wer": 412})


NUMBERS = [3, np.float32(3), np.int64(3), np.array(3.0), np.array([3]), torch.tensor(3.0), torch.tensor([[3]])]


@pytest.mark.parametrize("value", [*NUMBERS, torch.tensor(3.0, dtype=torch.bfloat16, requires_grad=True)], ids=repr)
def test_a_metric_may_be_a_number_of_any_kind(value):
    results, _ = run(make_runner(fit=returning({"loss": value}), measure=returning({"loss": value})), VALIDATE, TRAIN)
    assert [result.metrics for result in results.values()] == [{"loss": 3.0}, {"loss": 3.0}]


@pytest.mark.parametrize("value", [None, 0.5, np.zeros(3), torch.tensor(0.5), (0.5, 3), ["loss"], "loss"], ids=repr)
def test_a_task_that_returns_no_dictionary_is_named_and_told_what_to_return(value):
    for task, function in ((TRAIN, "fit"), (VALIDATE, "measure")):
        sentence = rf"task '{task.name}' \({function}\) returned .*{type(value).__name__}.*dictionary of metrics"
        with pytest.raises(ValueError, match=sentence):
            run(make_runner(fit=returning(value), measure=returning(value)), task)


NO_NUMBERS = ["0.5", 1j, np.zeros(3), torch.zeros(3), torch.tensor(1j), [[1], [2, 3]], {"mean": 1}, 10**400]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_a_metric_that_is_no_number_is_named(value):
    sentence = rf"task 'train' \(fit\) returned as metric 'loss' .*{type(value).__name__}.*one real number"
    with pytest.raises(ValueError, match=sentence):
        run(make_runner(fit=returning({"accuracy": 1.0, "loss": value})), TRAIN)


def test_a_metric_whose_name_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"task 'train' \(fit\) returned a metric with the name 3"):
        run(make_runner(fit=returning({3: 1.0})), TRAIN)


@pytest.mark.parametrize("treatment", ["RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL"])
def test_the_rate_of_the_optimizer_is_multiplied_by_that_of_the_round(treatment):
    rates = []

    def note_rate(model, points, device, optimizer, round_number):
        rates.append(optimizer.param_groups[0]["lr"])
        return toy.fit(model, points, device, optimizer, round_number)

    runner = make_runner(fit=note_rate, optimizer=toy.MOMENTUM, treatment=treatment)
    tensors = first_tensors(treatment == "CONTINUE_GLOBAL", toy.MOMENTUM)
    for round_number, factor in enumerate((1.0, 0.5, 0.5, 0.25)):
        runner.run_tasks([TRAIN], round_number, "a-5", tensors, "cpu", factor)
    assert rates == [toy.RATE, toy.RATE / 2, toy.RATE / 2, toy.RATE / 4]
