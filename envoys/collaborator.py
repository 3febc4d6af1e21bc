"""OpenFL's collaborator, made to fetch the model once a round and to send one update."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from openfl.component.collaborator.collaborator import Collaborator, DevicePolicy
from openfl.protocols.aggregator_pb2 import Task

from envoys.transport import DirectorRefusedError
from federation.aggregation import are_finite
from federation.tensors import TensorFile, Tensors, write_tensors

logger = logging.getLogger(__name__)


class RoundCollaborator(Collaborator):
    """Runs tasks through a `federation.task_runner.TaskRunner`; `client` is an `envoys.transport.RoundsClient`.

    Tensors whose names match a pattern in `local_tensors` stay here: kept in the file `local_path` and, as they were
    before the last round, in one beside it, so that a round that was cut short can be run again.
    """

    local_tensors: Sequence[str] = ()
    local_path: Path

    def run(self) -> None:
        self._initial_local = self._select_local()
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
        tensors = global_model | self._local_before(round_number)
        results, trained = self.task_runner.run_tasks(
            tasks, round_number, self.collaborator_name, tensors, self._device()
        )
        self._keep_local(round_number, trained)
        sent = {name: tensor for name, tensor in trained.items() if name not in self._initial_local}
        try:
            self.client.send_update(round_number, results, sent)
        except DirectorRefusedError as error:
            logger.error("round %d: %s", round_number, error)

    def _select_local(self) -> Tensors:
        """Those of the fresh model."""
        if not self.local_tensors:
            return {}
        own = self.task_runner.get_tensor_dict(with_opt_vars=self.task_runner.optimizer_travels)
        names = [name for name in own if any(fnmatchcase(name, pattern) for pattern in self.local_tensors)]
        return {name: own[name].copy() for name in names}

    def _local_before(self, round_number: int) -> Tensors:
        """What the last round before `round_number` made of them, in this process or an earlier one."""
        if self._initial_local:
            for path in (self.local_path, self._older_local_path):
                if self._is_from_before(round_number, path):
                    with TensorFile(path) as file:
                        return file.load()
        return self._initial_local

    def _keep_local(self, round_number: int, trained: Tensors) -> None:
        # After NaN no later round would bring a number again.
        if not self._initial_local or not trained or not are_finite(trained):
            return
        temporary = self.local_path.with_suffix(".partial")
        metadata = {"federation_uuid": self.federation_uuid, "round": round_number}
        write_tensors(temporary, {name: trained[name] for name in self._initial_local}, metadata)
        if self._is_from_before(round_number, self.local_path):
            self.local_path.rename(self._older_local_path)
        temporary.rename(self.local_path)

    @property
    def _older_local_path(self) -> Path:
        return self.local_path.with_suffix(".older")

    def _is_from_before(self, round_number: int, path: Path) -> bool:
        """Whether `path` has tensors of this experiment, left by a round before `round_number`."""
        if not path.exists():
            return False
        with TensorFile(path) as file:
            kept = file.header.metadata
        return kept["federation_uuid"] == self.federation_uuid and kept["round"] < round_number

    def _device(self) -> str:
        wants_cuda = self.device_assignment_policy is DevicePolicy.CUDA_PREFERRED
        return f"cuda:{torch.cuda.current_device()}" if wants_cuda and torch.cuda.is_available() else "cpu"
