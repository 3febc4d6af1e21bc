"""Envoys of OpenFL itself (`fx envoy`): they fetch each tensor by a call of its own, and send each task's results."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
from openfl.protocols import base_pb2
from openfl.protocols.aggregator_pb2 import TaskResults

from director.experiment import Experiment
from federation.rounds import UpdateRefusedError
from federation.tensors import TensorFile, Tensors, describe, stream
from federation.wire import TaskResult, UpdateEnvelope, UpdateMessage


def named_tensor(experiment: Experiment, name: str, round_number: int, tags: list[str]) -> base_pb2.NamedTensor:
    """One tensor of this round's global model, as OpenFL's pipeline without compression lays it out.

    Raises UpdateRefusedError for a tensor that the model does not have.
    """
    with TensorFile(experiment.folder.model) as model:
        if name not in model.header.entries:
            raise UpdateRefusedError(f"the global model has no tensor '{name[:200]}'")
        values, shape = model.read(name).astype(np.float32), model.header.entries[name].shape
    # What it takes the tag to mean: the bytes went through the pipeline.
    tags = [tag for tag in tags if tag != "compressed"] + ["compressed"]
    tensor = base_pb2.NamedTensor(
        name=name, round_number=round_number, lossless=True, tags=tags, data_bytes=values.tobytes()
    )
    tensor.transformer_metadata.add(int_list=shape)
    return tensor


@dataclass
class _Pending:
    results: dict[str, TaskResult] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


class StockUpdates:
    """Collects the results of one envoy's tasks until they are a whole update."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str], tuple[int, _Pending]] = {}

    async def add(self, experiment: Experiment, envoy: str, message: TaskResults) -> None:
        """Raises UpdateRefusedError; an update that is not complete yet is only kept."""
        sender = UpdateEnvelope(experiment=experiment.plan.name, envoy=envoy, round=message.round_number, results=None)
        try:
            await self._add(experiment, sender, message)
        except UpdateRefusedError as error:
            experiment.refuse(sender, str(error))
            raise

    async def _add(self, experiment: Experiment, sender: UpdateEnvelope, message: TaskResults) -> None:
        envoy = sender.envoy
        key = (experiment.plan.name, envoy)
        round_number, pending = self._pending.get(key, (-1, _Pending()))
        if round_number != message.round_number:
            pending = _Pending()
        self._pending[key] = (message.round_number, pending)
        with TensorFile(experiment.folder.model) as model:
            entries = model.header.entries
        metrics = {}
        for tensor in message.tensors:
            values = _values(tensor, str(sender))
            if "metric" in tensor.tags:
                metrics[tensor.name] = float(values.reshape(-1)[0])
            elif "trained" in tensor.tags and tensor.name in entries:
                # OpenFL sends everything as float32.
                pending.tensors[tensor.name] = values.astype(entries[tensor.name].dtype)
        pending.results[message.task_name] = TaskResult(size=max(0, message.data_size), metrics=metrics)

        wanted = {task.name for task in experiment.rounds.tasks_for(envoy)}
        if wanted and wanted == pending.results.keys():
            del self._pending[key]
            await self._hand_in(experiment, envoy, message.round_number, pending)

    @staticmethod
    async def _hand_in(experiment: Experiment, envoy: str, round_number: int, pending: _Pending) -> None:
        update = UpdateMessage(
            experiment=experiment.plan.name, envoy=envoy, round=round_number, results=pending.results
        )
        await experiment.receive_update(update, describe(pending.tensors, update.model_dump()), _data(pending.tensors))


async def _data(tensors: Tensors) -> AsyncIterator[bytes]:
    _, *pieces = stream(tensors, {})
    for piece in pieces:
        yield piece


def _values(tensor: base_pb2.NamedTensor, refused: str) -> np.ndarray:
    shape = tuple(tensor.transformer_metadata[0].int_list) if tensor.transformer_metadata else ()
    try:
        values = np.frombuffer(tensor.data_bytes, np.float32).reshape(shape)
    except ValueError as error:
        raise UpdateRefusedError(f"{refused}: tensor '{tensor.name[:200]}': {error}") from None
    if values.size == 0 and "metric" in tensor.tags:
        raise UpdateRefusedError(f"{refused}: metric '{tensor.name[:200]}' has no value")
    return values
