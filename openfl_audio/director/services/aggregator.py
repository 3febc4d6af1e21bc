"""OpenFL's service `Aggregator`: workers get their tasks here, and OpenFL's own envoys also the model."""

import logging
from collections.abc import AsyncIterator

import grpc
from google.protobuf.message import DecodeError
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, base_pb2

from openfl_audio.director.authorization import Context, Gate, made_by, refuse
from openfl_audio.director.director import Director
from openfl_audio.director.experiment import Experiment
from openfl_audio.director.openfl_envoys import header_of_results, most_bytes_of_results, named_tensor, receive_results
from openfl_audio.errors import CallEndedError, LackError, UpdateRefusedError

logger = logging.getLogger(__name__)


class AggregatorService(aggregator_pb2_grpc.AggregatorServicer):
    """OpenFL's aggregator service, on the director's port: a call belongs to the experiment of its federation id."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    @made_by("envoy")
    async def GetTasks(self, request: aggregator_pb2.GetTasksRequest, context: Context):  # noqa: N802
        """Answer with the envoy's tasks of the open round, when there are some."""
        experiment, name = await self._find(context, request.header)
        try:
            tasks, round_number = await experiment.scheduler.wait_for_tasks(name)
        except LackError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        return aggregator_pb2.GetTasksResponse(
            header=_answer(request.header),
            round_number=round_number,
            tasks=[aggregator_pb2.Task(**task.model_dump()) for task in tasks],
            quit=experiment.ended or name in experiment.state.departed,
        )

    @made_by("envoy")
    async def GetAggregatedTensor(self, request: aggregator_pb2.GetAggregatedTensorRequest, context: Context):  # noqa: N802
        """Answer with one tensor of the global model. Only OpenFL's own envoys call it."""
        experiment, _ = await self._find(context, request.header)
        try:
            tensor = named_tensor(experiment, request.tensor_name, request.round_number, list(request.tags))
        except UpdateRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        experiment.scheduler.n_bytes += len(tensor.data_bytes)
        return aggregator_pb2.GetAggregatedTensorResponse(
            header=_answer(request.header), round_number=request.round_number, tensor=tensor
        )

    @made_by("envoy")
    async def SendLocalTaskResults(self, request_iterator, context: Context):  # noqa: N802
        """Take in the results of one task. Only OpenFL's own envoys call it."""
        chunks = aiter(request_iterator)
        first = await anext(chunks, base_pb2.DataStream())
        try:
            header = header_of_results(first.npbytes)
        except DecodeError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not the results of a task: {error}")
        experiment, name = await self._find(context, header)
        try:
            with experiment.transfers.open("results", name):
                buffer = await self._put_together(first.npbytes, chunks, most_bytes_of_results(experiment), context)
        except CallEndedError as error:
            await refuse(context, grpc.StatusCode.ABORTED, str(error))
        try:
            results = aggregator_pb2.TaskResults.FromString(bytes(buffer))
        except DecodeError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not the results of a task: {error}")
        experiment, name = await self._find(context, results.header)
        try:
            await receive_results(experiment, name, results)
        except UpdateRefusedError as error:
            # OpenFL's envoy repeats a call that fails, for ever; the reason is in the history.
            logger.warning("%s", error)
        return aggregator_pb2.SendLocalTaskResultsResponse(header=_answer(results.header))

    @staticmethod
    async def _put_together(first: bytes, chunks: AsyncIterator, most_bytes: int, context: Context) -> bytearray:
        buffer = bytearray(first)
        async for chunk in chunks:
            buffer += chunk.npbytes
            if len(buffer) > most_bytes:
                sentence = f"the results are larger than {most_bytes} bytes, which the model could need"
                await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        return buffer

    async def _find(self, context: Context, header: aggregator_pb2.MessageHeader) -> tuple[Experiment, str]:
        """Return the experiment of a call and the envoy that makes it; end the call if there is none."""
        name = await self.gate.envoy(context, header.sender)
        experiment = self.director.federations.get(header.federation_uuid)
        if experiment is not None and name in experiment.envoys:
            return experiment, name
        sentence = f"no experiment of federation id '{header.federation_uuid[:80]}' for envoy '{name}'"
        return await refuse(context, grpc.StatusCode.NOT_FOUND, sentence)


def _answer(header: aggregator_pb2.MessageHeader) -> aggregator_pb2.MessageHeader:
    return aggregator_pb2.MessageHeader(
        sender=header.receiver,
        receiver=header.sender,
        federation_uuid=header.federation_uuid,
        single_col_cert_common_name=header.single_col_cert_common_name,
    )
