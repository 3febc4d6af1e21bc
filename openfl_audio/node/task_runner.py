"""OpenFL's task runner, made to run the tasks of one client: on an envoy, or in a simulation."""

import copy
import faulthandler
import logging
import math
import operator
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from openfl.federated.task.task_runner import CoreTaskRunner

from openfl_audio.node.adapter import move, remember_weights
from openfl_audio.node.local_state import ClientStates
from openfl_audio.node.private_task import private_task
from openfl_audio.node.progress import CountedData, begin_task
from openfl_audio.protocol.low_rank import is_given
from openfl_audio.protocol.messages import MAX_CLIPS, TaskResult
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.protocol.plan import Task
from openfl_audio.protocol.privacy import GradientLevel, Level
from openfl_audio.protocol.tensors import Tensors
from openfl_audio.protocol.values import are_finite

logger = logging.getLogger(__name__)


class TaskRunner(CoreTaskRunner):
    """Runs tasks on the tensors it is given; it does not use OpenFL's keys for its tensor database.

    Before each task Python's, NumPy's and torch's global generators are seeded with a function of `seed`, round, client
    and task, so that a result depends neither on the process it comes from nor on what that did before. A task that
    takes longer than `task_timeout_seconds` ends the process with a traceback.

    With `states`, the state of a client (local tensors, the optimizer under CONTINUE_LOCAL) is read from the disk
    before each round and written after it: another process continues with the same bits.

    With `privacy` of records or speakers training tasks have to be private. Their noise follows from no seed, so that
    no two runs agree.
    """

    seed: int = 0
    states: ClientStates | None = None
    privacy: Level | None = None
    task_timeout_seconds: float | None = None
    data_loader: Any
    _rate_factor: float = 1.0

    def run_tasks(
        self,
        tasks: Sequence[Task],
        round_number: int,
        client: str,
        model: Tensors,
        device: str,
        rate_factor: float = 1.0,
    ) -> tuple[dict[str, TaskResult], Tensors]:
        """Return results by task, and the tensors that the training made of `model`: none if there was none.

        The learning rate of the optimizer is multiplied by `rate_factor`; a task that sets a rate of its own, by a
        schedule say, replaces it. A client without clips for a task (`get_train_data_size` or `get_valid_data_size` is
        0) has no say in it.
        """
        self._rate_factor = rate_factor
        if self.states is None:
            return self._run_in_turn(tasks, round_number, client, model, device)
        initial = self._initial_local
        # An optimizer's state is put where the parameters are.
        move(self.model, device)
        local, optimizer = self.states.load(client, round_number)
        if self.states.keeps_optimizer:
            self.optimizer = self.model_provider.provide_optimizer()
            if optimizer is not None:
                self.optimizer.load_state_dict(optimizer)
        results, trained = self._run_in_turn(tasks, round_number, client, model | initial | local, device)
        optimizer = self.optimizer.state_dict() if self.states.keeps_optimizer else None
        # After NaN no later round of this client would give a number again.
        if trained and are_finite(trained) and _is_finite(optimizer):
            kept = {name: tensor for name, tensor in trained.items() if name in initial}
            self.states.save(client, round_number, kept, optimizer)
        return results, {name: tensor for name, tensor in trained.items() if name not in initial}

    @cached_property
    def _initial_local(self) -> Tensors:
        """Return local tensors that no client has changed yet: those of the fresh model."""
        own = self.get_tensor_dict(with_opt_vars=self.transmits_optimizer)
        return {name: own[name].copy() for name in own if self.states and self.states.is_local(name)}

    def _run_in_turn(
        self, tasks: Sequence[Task], round_number: int, client: str, tensors: Tensors, device: str
    ) -> tuple[dict[str, TaskResult], Tensors]:
        trained: Tensors = {}
        results = {}
        for task in tasks:
            given = tensors | trained if task.apply_local else tensors
            results[task.name], produced = self._run_task(task, round_number, client, given, device)
            trained = produced or trained
            logger.info("round %d, %s: %s", round_number, task.name, results[task.name])
        return results, trained

    def _run_task(
        self, task: Task, round_number: int, client: str, tensors: Tensors, device: str
    ) -> tuple[TaskResult, Tensors]:
        validates = task.task_type == "validate"
        size = self._data_size("get_valid_data_size" if validates else "get_train_data_size")
        if size == 0:
            return TaskResult(size=0, metrics={}), {}
        apply = {"apply": "local" if task.apply_local else "global"} if validates else {}
        seed_generators(f"{self.seed}:{round_number}:{client}:{task.name}")
        with self._time_limit(), self._reporting(task, round_number), self._privacy(task, round_number, client):
            returned, produced = self.TASK_REGISTRY[task.function_name](
                col_name=client, round_num=round_number, input_tensor_dict=tensors, device=device, **apply
            )
        metrics = _metrics(returned, task)
        counts = {str(name): value.count for name, value in returned.items() if isinstance(value, MeanOver)}
        return TaskResult(size=size, metrics=metrics, counts=counts), produced

    def _data_size(self, method: str) -> int:
        """Return what `method` of the data interface returns.

        Raises ValueError, naming the method, if that is no number of clips.
        """
        returned = getattr(self.data_loader, method)()
        try:
            size = -1 if isinstance(returned, bool) else operator.index(returned)  # NumPy's and torch's integers too
        except TypeError:
            size = -1
        if not 0 <= size <= MAX_CLIPS:
            raise ValueError(
                f"{method} of {type(self.data_loader).__name__} returned {returned!r:.100} "
                f"({type(returned).__name__}): it should return the number of clips, an integer from 0 to {MAX_CLIPS}"
            )
        return size

    @contextmanager
    def _reporting(self, task: Task, round_number: int) -> Iterator[None]:
        """Report the steps of a task, as far as it takes them from a loader that counts them."""
        data = self.data_loader
        self.data_loader = CountedData(data)
        begin_task(task.name, round_number)
        try:
            yield
        finally:
            begin_task("", round_number)
            self.data_loader = data

    def _privacy(self, task: Task, round_number: int, client: str) -> AbstractContextManager[None]:
        if not isinstance(self.privacy, GradientLevel) or task.task_type != "train":
            return nullcontext()
        return private_task(self.privacy, client, round_number, task.name)

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        if self.task_timeout_seconds is None:
            yield
            return
        faulthandler.dump_traceback_later(self.task_timeout_seconds, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def set_model_provider(self, model_provider: Any) -> None:
        """Build the model. Generators are seeded first: a recipe may draw weights that are never transmitted."""
        seed_generators(f"{self.seed}:model")
        super().set_model_provider(model_provider)
        model_provider.check_base()
        self._recipe = RecipeState(self.model)

    @property
    def transmits_optimizer(self) -> bool:
        """Tell whether the optimizer's state is transmitted."""
        return self.opt_treatment == "CONTINUE_GLOBAL"

    def initialize_tensorkeys_for_functions(self, with_opt_vars: bool = False) -> None:
        """Do nothing: OpenFL copies the whole model here, for the names."""

    def rebuild_model(self, input_tensor_dict: Tensors, validation: bool = False, device: str = "cpu") -> None:
        """Write the tensors into the model, and treat the optimizer as the experiment says."""
        self._recipe.restore(device)
        if self.opt_treatment != "CONTINUE_LOCAL":
            state = self.optimizer.state
            self.reset_opt_vars()
            if self.transmits_optimizer:
                # As memory for what was transmitted; a learning rate that the task before has changed is not.
                self.optimizer.state.update(state)
        self.set_tensor_dict(input_tensor_dict, with_opt_vars=self.transmits_optimizer, device=device)
        self._scale_rates()
        if hasattr(self.optimizer, "set_old_weights"):
            # OpenFL's FedProx optimizers pull towards the weights that the round began with.
            remember_weights(self.optimizer)

    def _scale_rates(self) -> None:
        if self._rate_factor == 1:
            return
        # From the recipe's rates: an optimizer that stays with its client has been scaled before.
        groups = self.model_provider.provide_optimizer().param_groups
        for group, first in zip(self.optimizer.param_groups, groups, strict=True):
            group["lr"] = first["lr"] * self._rate_factor

    def _prepare_tensorkeys_for_agggregation(
        self, metric_dict: dict[str, Any], validation_flag: str | bool, col_name: str, round_num: int
    ) -> tuple[Any, Tensors]:
        """Return what a task returned, and the tensors it leaves behind if it trains."""
        tensors = {} if validation_flag else self.get_tensor_dict(with_opt_vars=self.transmits_optimizer)
        return metric_dict, {name: tensor for name, tensor in tensors.items() if not is_given(name)}


class RecipeState:
    """State of a model that is not transmitted, but may be changed by a task.

    Such are modes, gradients, extra state and non-persistent buffers. Each task begins with them as the recipe built
    them, whatever the task before, maybe another client's, has left behind.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        modules = list(model.modules())
        self._parameters = list(model.parameters())
        self._modes = [(module, module.training) for module in modules]
        self._extra_states = [
            (module, copy.deepcopy(module.get_extra_state()))
            for module in modules
            if type(module).get_extra_state is not torch.nn.Module.get_extra_state
        ]
        self._buffers = [
            (module, name, copy.deepcopy(module._buffers[name]))
            for module in modules
            for name in sorted(module._non_persistent_buffers_set)
        ]

    def restore(self, device: str) -> None:
        """Put the state back into the model."""
        for parameter in self._parameters:
            parameter.grad = None
        for module, training in self._modes:
            if module.training != training:  # setting it takes a hundred times as long as reading it
                module.training = training
        for module, state in self._extra_states:
            module.set_extra_state(copy.deepcopy(state))
        for module, name, value in self._buffers:
            if not _same(module._buffers.get(name), value):
                module._buffers[name] = None if value is None else value.to(device, copy=True)


def _same(tensor: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if tensor is None or other is None:
        return tensor is other
    plain = tensor.layout is other.layout is torch.strided  # torch compares no sparse ones
    return plain and tensor.dtype == other.dtype and torch.equal(tensor.cpu(), other)


def _metrics(returned: Any, task: Task) -> dict[str, float]:
    """Return the metrics that a task returned. Raises ValueError, naming the task and the metric, if they are none."""
    called = f"task '{task.name}' ({task.function_name})"
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"{called} returned {returned!r:.100} ({type(returned).__name__}): "
            "it should return a dictionary of metrics, such as {'loss': 0.5}"
        )
    for name in returned:
        if not isinstance(name, str):
            raise ValueError(f"{called} returned a metric with the name {name!r:.100}: names of metrics are text")
    return {str(name): _number(value, f"{called} returned as metric '{name}'") for name, value in returned.items()}


def _number(value: Any, said: str) -> float:
    """Return a number of Python, NumPy or torch, or an array or tensor that holds one, as a float.

    None becomes NaN: a metric that a task could not measure, as an area under a curve with one class, is undefined.
    """
    if value is None:
        return math.nan
    try:
        array = np.asarray(value.item() if isinstance(value, torch.Tensor) else value)
        if array.dtype.kind in "biuf" and array.size == 1:
            return float(array.item())
    except (TypeError, ValueError, RuntimeError):
        pass  # a ragged list, say, or a tensor of several values
    raise ValueError(f"{said} {value!r:.100} ({type(value).__name__}): a metric is one real number")


def _is_finite(optimizer: dict[str, Any] | None) -> bool:
    values = [value for state in (optimizer or {"state": {}})["state"].values() for value in state.values()]
    return all(value.isfinite().all() for value in values if isinstance(value, torch.Tensor))


def seed_generators(name: str) -> None:
    """Seed Python's, NumPy's and torch's global generators with a function of `name`."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    # Not torch.manual_seed: without a GPU it takes a millisecond to record its caller.
    torch.default_generator.manual_seed(seed)
    if _has_gpu():
        torch.cuda.manual_seed_all(seed)


# Called once: it takes as long as all of the above together.
_has_gpu = cache(torch.cuda.is_available)
