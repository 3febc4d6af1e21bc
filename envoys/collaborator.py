"""OpenFL's collaborator, made to fetch the model once a round and to send one update."""

import logging
from collections.abc import Sequence
from typing import Any

from openfl.component.collaborator.collaborator import Collaborator, DevicePolicy
from openfl.protocols.aggregator_pb2 import Task

from federation.wire import Tensors

logger = logging.getLogger(__name__)


class RoundCollaborator(Collaborator):
    """Runs the tasks through OpenFL's task runner; `client` is an `envoys.transport.RoundsClient`."""

    def run(self) -> None:
        while True:
            tasks, round_number, _, time_to_quit = self.get_tasks()
            if time_to_quit:
                return
            if tasks:
                self.run_round(tasks, round_number)

    def run_round(self, tasks: Sequence[Task], round_number: int) -> None:
        global_model = self.client.get_model()
        trained: Tensors = {}
        results = {}
        for task in tasks:
            tensors = trained if task.apply_local else global_model
            results[task.name], produced = self.run_task(task, round_number, tensors)
            trained = produced or trained
            logger.info("round %d, %s: %s", round_number, task.name, results[task.name])
        self.client.send_update(round_number, results, trained)

    def run_task(self, task: Task, round_number: int, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Result of one task ({"size", "metrics"}), and the trained tensors if it trains."""
        kwargs = {"device": self._device()}
        if task.task_type == "validate":
            kwargs["apply"] = "local" if task.apply_local else "global"
            size = self.task_runner.get_valid_data_size()
            if size == 0:
                # No validation clip on this node: it has no say in the metrics.
                return {"size": 0, "metrics": {}}, {}
        else:
            size = self.task_runner.get_train_data_size()
        outputs, _ = self.task_runner.TASK_REGISTRY[task.function_name](
            col_name=self.collaborator_name, round_num=round_number, input_tensor_dict=dict(tensors), **kwargs
        )
        metrics = {key.tensor_name: float(value) for key, value in outputs.items() if "metric" in key.tags}
        produced = {key.tensor_name: value for key, value in outputs.items() if "metric" not in key.tags}
        return {"size": size, "metrics": metrics}, produced

    def _device(self) -> str:
        wants_cuda = self.device_assignment_policy is DevicePolicy.CUDA_PREFERRED
        return f"cuda:{self.cuda_devices[0]}" if wants_cuda and self.cuda_devices else "cpu"
