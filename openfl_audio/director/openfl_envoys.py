"""Envoys of upstream OpenFL (`fx envoy`): they fetch each tensor and send each task's results in a call of its own."""

from collections.abc import AsyncIterator

import numpy as np
from google.protobuf.message import DecodeError
from openfl.protocols import base_pb2
from openfl.protocols.aggregator_pb2 import MessageHeader, TaskResults

from openfl_audio.director.experiment import Experiment
from openfl_audio.director.intake import PartialUpdate
from openfl_audio.errors import UpdateRefusedError
from openfl_audio.protocol.low_rank import is_given
from openfl_audio.protocol.messages import TaskResult, UpdateEnvelope, UpdateMessage
from openfl_audio.protocol.tensors import TensorFile, Tensors, describe, stream

# The first field of TaskResults, which is a message.
HEADER_FIELD = 0x0A


def named_tensor(experiment: Experiment, name: str, round_number: int, tags: list[str]) -> base_pb2.NamedTensor:
    """Return one tensor of this round's global model, as OpenFL's pipeline without compression lays it out.

    Raises UpdateRefusedError for a tensor that the model does not have.
    """
    with TensorFile(experiment.folder.model) as model:
        if name not in model.header.entries:
            raise UpdateRefusedError(f"the global model has no tensor '{name[:200]}'")
        values, shape = model.read(name).astype(np.float32), model.header.entries[name].shape
    # To OpenFL the tag means that the bytes went through the pipeline.
    tags = [tag for tag in tags if tag != "compressed"] + ["compressed"]
    tensor = base_pb2.NamedTensor(
        name=name, round_number=round_number, lossless=True, tags=tags, data_bytes=values.tobytes()
    )
    tensor.transformer_metadata.add(int_list=shape)
    return tensor


def most_bytes_of_results(experiment: Experiment) -> int:
    """Return how many bytes the results of a task may have: twice the model in float32, and descriptions.

    They are put together in memory.
    """
    entries = experiment.folder.model_header.entries.values()
    return (1 << 20) + sum(2 * 4 * entry.count + 4096 for entry in entries)


def header_of_results(chunk: bytes) -> MessageHeader:
    """Return the header that results begin with. Raises DecodeError."""
    # A message in a message: its field's number and type, its length in groups of seven bits, and itself.
    size = 0
    for index, byte in enumerate(chunk[1:4]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            start = index + 2
            if chunk[0] == HEADER_FIELD and len(chunk) >= start + size:
                return MessageHeader.FromString(chunk[start : start + size])
            break
    raise DecodeError("they do not begin with a header")


async def receive_results(experiment: Experiment, envoy: str, message: TaskResults) -> None:
    """Take in the results of one task; with the last one that the round asks for they are an update.

    Raises UpdateRefusedError. Late and repeated results are dropped.
    """
    sender = UpdateEnvelope(experiment=experiment.plan.name, envoy=envoy, round=message.round_number, results=None)
    if experiment.intake.is_dropped(sender):
        return
    try:
        wanted = _wanted(experiment, sender, message)
        partial = experiment.intake.partial_updates.setdefault(envoy, PartialUpdate())
        _add(experiment, partial, sender, message)
    except UpdateRefusedError as error:
        experiment.intake.refuse(sender, str(error))
        raise
    if wanted == partial.results.keys():
        update = UpdateMessage(**sender.model_dump(exclude={"results"}), results=partial.results)
        header = describe(partial.tensors, update.model_dump())
        await experiment.intake.receive(update, header, _data(partial.tensors))
        # Not before: if the director lacks something, the envoy sends its last part once more, and only that.
        experiment.intake.partial_updates.pop(envoy, None)


def _wanted(experiment: Experiment, sender: UpdateEnvelope, message: TaskResults) -> set[str]:
    """Return the names of the tasks that the round asks for.

    Raises UpdateRefusedError if the task of `message` is none of them.
    """
    current = experiment.rounds.round_number
    wanted = {task.name for task in experiment.rounds.tasks_for(sender.envoy)}
    if sender.round != current or message.task_name not in wanted:
        wanted_names = sorted(wanted) or "nothing"
        raise UpdateRefusedError(
            f"{sender}: has results of '{message.task_name[:200]}', round {current} asks for {wanted_names} from it"
        )
    return wanted


def _add(experiment: Experiment, partial: PartialUpdate, sender: UpdateEnvelope, message: TaskResults) -> None:
    with TensorFile(experiment.folder.model) as model:
        entries = model.header.entries
    metrics = {}
    for tensor in message.tensors:
        values = _values(tensor, str(sender))
        if "metric" in tensor.tags:
            metrics[tensor.name] = float(values.reshape(-1)[0])
        elif "trained" in tensor.tags and tensor.name in entries and not is_given(tensor.name):
            # OpenFL sends everything as float32.
            partial.tensors[tensor.name] = values.astype(entries[tensor.name].dtype)
    partial.results[message.task_name] = TaskResult(size=max(0, message.data_size), metrics=metrics)


async def _data(tensors: Tensors) -> AsyncIterator[bytes]:
    _, *chunks = stream(tensors, {})
    for chunk in chunks:
        yield chunk


def _values(tensor: base_pb2.NamedTensor, error_prefix: str) -> np.ndarray:
    shape = tuple(tensor.transformer_metadata[0].int_list) if tensor.transformer_metadata else ()
    try:
        values = np.frombuffer(tensor.data_bytes, np.float32).reshape(shape)
    except ValueError as error:
        raise UpdateRefusedError(f"{error_prefix}: tensor '{tensor.name[:200]}': {error}") from None
    if values.size == 0 and "metric" in tensor.tags:
        raise UpdateRefusedError(f"{error_prefix}: metric '{tensor.name[:200]}' has no value")
    return values
