"""OpenFL's collaborator, made to fetch the model once a round and to send one update."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from openfl.component.collaborator.collaborator import Collaborator, DevicePolicy
from openfl.protocols.aggregator_pb2 import Task

from envoys.transport import DirectorRefusedError
from federation.tensors import TensorFile, Tensors, write_tensors

logger = logging.getLogger(__name__)


class RoundCollaborator(Collaborator):
    """Runs tasks through a `federation.task_runner.TaskRunner`; `client` is an `envoys.transport.RoundsClient`.

    Tensors whose names match a pattern in `local_tensors` stay here: kept in the file `local_path`, so that they
    outlive this process.
    """

    local_tensors: Sequence[str] = ()
    local_path: Path

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
        results, trained = self.task_runner.run_tasks(
            tasks, round_number, self.collaborator_name, global_model | self.local, self._device()
        )
        self._keep_local(trained)
        sent = {name: tensor for name, tensor in trained.items() if name not in self.local}
        try:
            self.client.send_update(round_number, results, sent)
        except DirectorRefusedError as error:
            logger.error("round %d: %s", round_number, error)

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
