"""OpenFL's collaborator and task runner, made to fetch the model once a round and to send one update."""

import faulthandler
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from openfl.component.collaborator.collaborator import Collaborator, DevicePolicy
from openfl.federated.task.task_runner import CoreTaskRunner
from openfl.protocols.aggregator_pb2 import Task

from envoys.transport import DirectorRefusedError
from federation.adapter import remember_weights
from federation.tensors import TensorFile, Tensors, write_tensors
from federation.wire import TaskResult

logger = logging.getLogger(__name__)


class TaskRunner(CoreTaskRunner):
    """Runs one task on the tensors it is given. OpenFL's keys for its tensor database have no part in that."""

    def initialize_tensorkeys_for_functions(self, with_opt_vars: bool = False) -> None:
        """OpenFL copies the whole model here, for the names."""

    def rebuild_model(self, input_tensor_dict: Tensors, validation: bool = False, device: str = "cpu") -> None:
        """Write the tensors into the model, and treat the optimizer as the experiment says."""
        if self.opt_treatment == "RESET":
            self.reset_opt_vars()
        self.set_tensor_dict(input_tensor_dict, with_opt_vars=self.optimizer_travels, device=device)
        if hasattr(self.optimizer, "set_old_weights"):
            # FedProx (OpenFL's optimizers) pulls towards the weights that the round began with.
            remember_weights(self.optimizer)

    @property
    def optimizer_travels(self) -> bool:
        return self.opt_treatment == "CONTINUE_GLOBAL"

    def _prepare_tensorkeys_for_agggregation(
        self, metric_dict: dict[str, Any], validation_flag: str | bool, col_name: str, round_num: int
    ) -> tuple[dict[str, float], Tensors]:
        """What a task gives: its metrics, and the tensors it leaves behind if it trains."""
        tensors = {} if validation_flag else self.get_tensor_dict(with_opt_vars=self.optimizer_travels)
        return {name: float(value) for name, value in metric_dict.items()}, tensors


class RoundCollaborator(Collaborator):
    """Runs the tasks through OpenFL's task runner; `client` is an `envoys.transport.RoundsClient`.

    Tensors whose names match a pattern in `local_tensors` stay here: kept in the file `local_path`, so that they
    outlive this process. A task that takes longer than `task_timeout_seconds` ends the process with a traceback.
    """

    local_tensors: Sequence[str] = ()
    local_path: Path
    task_timeout_seconds: float | None = None

    def run(self) -> None:
        self.local = self._load_local()
        while True:
            tasks, round_number, _, time_to_quit = self.get_tasks()
            if time_to_quit:
                return
            if tasks:
                self.run_round(tasks, round_number)

    def run_round(self, tasks: Sequence[Task], round_number: int) -> None:
        global_model, model_round = self.client.get_model()
        if model_round != round_number:
            return  # the round ended meanwhile; ask what there is to do now
        trained: Tensors = {}
        results = {}
        for task in tasks:
            tensors = trained if task.apply_local else global_model | self.local
            results[task.name], produced = self.run_task(task, round_number, tensors)
            trained = produced or trained
            logger.info("round %d, %s: %s", round_number, task.name, results[task.name])
        self._keep_local(trained)
        sent = {name: tensor for name, tensor in trained.items() if name not in self.local}
        try:
            self.client.send_update(round_number, results, sent)
        except DirectorRefusedError as error:
            logger.error("round %d: %s", round_number, error)

    def run_task(self, task: Task, round_number: int, tensors: Tensors) -> tuple[TaskResult, Tensors]:
        """Result of one task, and the trained tensors if it trains."""
        kwargs = {"device": self._device()}
        if task.task_type == "validate":
            kwargs["apply"] = "local" if task.apply_local else "global"
            size = self.task_runner.get_valid_data_size()
            if size == 0:
                # No validation clip on this node: it has no say in the metrics.
                return TaskResult(size=0, metrics={}), {}
        else:
            size = self.task_runner.get_train_data_size()
        with self._time_limit():
            metrics, produced = self.task_runner.TASK_REGISTRY[task.function_name](
                col_name=self.collaborator_name, round_num=round_number, input_tensor_dict=tensors, **kwargs
            )
        return TaskResult(size=size, metrics=metrics), produced

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        if self.task_timeout_seconds is not None:
            faulthandler.dump_traceback_later(self.task_timeout_seconds, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _load_local(self) -> Tensors:
        """Values that stay on this node: those of an earlier process of this experiment, or of the fresh model."""
        if not self.local_tensors:
            return {}
        own = self.task_runner.get_tensor_dict(with_opt_vars=self.task_runner.optimizer_travels)
        local = {name: own[name] for name in own if any(fnmatchcase(name, p) for p in self.local_tensors)}
        if local and self.local_path.exists():
            with TensorFile(self.local_path) as file:
                if file.header.metadata == {"federation_uuid": self.federation_uuid}:
                    return file.load()
        return local

    def _keep_local(self, trained: Tensors) -> None:
        if not self.local or not trained:
            return
        self.local = {name: trained[name] for name in self.local}
        temporary = self.local_path.with_suffix(".partial")
        write_tensors(temporary, self.local, {"federation_uuid": self.federation_uuid})
        temporary.rename(self.local_path)

    def _device(self) -> str:
        wants_cuda = self.device_assignment_policy is DevicePolicy.CUDA_PREFERRED
        return f"cuda:{torch.cuda.current_device()}" if wants_cuda and torch.cuda.is_available() else "cpu"
