"""OpenFL's collaborator, made to fetch the model once a round and to send one update."""

import logging
from collections.abc import Sequence

import torch
from openfl.component.collaborator.collaborator import Collaborator, DevicePolicy
from openfl.protocols.aggregator_pb2 import Task

from openfl_audio.errors import DirectorRefusedError

logger = logging.getLogger(__name__)


class RoundCollaborator(Collaborator):
    """OpenFL's collaborator, run by a `node.task_runner.TaskRunner` and an `envoy.rounds_client.RoundsClient`.

    The state that stays here from round to round is up to the `states` of the task runner.
    """

    def run(self) -> None:
        """Take part in rounds until the experiment ends."""
        while True:
            tasks, round_number, _, time_to_quit = self.get_tasks()
            if time_to_quit:
                return
            if tasks:
                self.run_round(tasks, round_number)

    def run_round(self, tasks: Sequence[Task], round_number: int) -> None:
        """Run the tasks of one round, and send the update."""
        global_model, about = self.client.get_model()
        if about.round != round_number:
            return  # the round ended meanwhile; ask what there is to do now
        results, trained = self.task_runner.run_tasks(
            tasks, round_number, self.collaborator_name, global_model, self._device(), about.rate_factor
        )
        try:
            self.client.send_update(round_number, results, trained)
        except DirectorRefusedError as error:
            logger.error("round %d: %s", round_number, error)

    def _device(self) -> str:
        wants_cuda = self.device_assignment_policy is DevicePolicy.CUDA_PREFERRED
        return f"cuda:{torch.cuda.current_device()}" if wants_cuda and torch.cuda.is_available() else "cpu"
