"""gRPC on one port: OpenFL's `Director` and `Aggregator` services, and `openfl_audio.Rounds` for whole models."""

import asyncio
import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, base_pb2, director_pb2, director_pb2_grpc
from pydantic import ValidationError

from openfl_audio.director.authorization import Context, Gate, header_of, made_by, refuse
from openfl_audio.director.director import SUBMISSION, Director
from openfl_audio.director.experiment import Experiment, unless_small
from openfl_audio.director.flow_control import Downloads, Uploads
from openfl_audio.director.openfl_envoys import header_of_results, most_bytes_of_results, named_tensor, receive_results
from openfl_audio.director.shortage import telling_lack
from openfl_audio.errors import (
    BrokenUploadError,
    CallEndedError,
    EnvoyRefusedError,
    LackError,
    SubmissionError,
    TensorFormatError,
    UpdateRefusedError,
    WireError,
)
from openfl_audio.protocol.plan import NAME
from openfl_audio.protocol.shard_sizes import SIZES
from openfl_audio.protocol.tensors import PIECE_BYTES, Header
from openfl_audio.protocol.wire import (
    MAX_REQUEST_BYTES,
    SERVICE,
    AttendRequest,
    ExperimentRequest,
    HistoryRequest,
    Kind,
    ModelRequest,
    StatusRequest,
    UpdateEnvelope,
    decode,
    describe_faults,
    encode,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
# One byte that zlib has packed becomes so many at most.
MAX_COMPRESSION = 1032
MAX_SUBMISSION_BYTES = 64 << 30
MAX_REASON_CHARACTERS = 10_000
# Of a history that goes with other news of an experiment. The whole of it may be gigabytes.
MAX_LATEST_BYTES = 1 << 20


async def parse(context: Context, request: bytes, kind: type[Kind]) -> Kind:
    """The request as a message; ends the call if it is none."""
    try:
        return decode(request, kind)
    except WireError as error:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))


async def without_blocking(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Items of a generator that reads files, between which other calls get their turn."""
    for item in items:
        yield item
        await asyncio.sleep(0)


class DirectorService(director_pb2_grpc.DirectorServicer):
    """OpenFL's director service."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    # Calls of envoys

    @made_by("envoy")
    async def UpdateShardInfo(self, request: director_pb2.UpdateShardInfoRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.shard_info.node_info.name)
        if not NAME.fullmatch(name):
            sentence = (
                f"envoy name {name[:80]!r}: use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
            )
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, sentence)
        if request.ByteSize() > MAX_REQUEST_BYTES:
            # Each notebook gets the descriptions of all envoys in one message.
            sentence = (
                f"envoy '{name}' describes its shard in {request.ByteSize()} bytes, more than {MAX_REQUEST_BYTES}"
            )
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, sentence)
        corpus, instance = header_of(context, "corpus"), header_of(context, "instance") or name
        try:
            sizes = SIZES.validate_json(header_of(context, "sizes") or "{}")
        except ValidationError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"sizes of a shard: {describe_faults(error)}")
        try:
            self.director.register(request.shard_info, corpus, instance, context.peer(), sizes)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, str(error))
        return director_pb2.UpdateShardInfoResponse(accepted=True)

    @made_by("envoy")
    async def UpdateEnvoyStatus(self, request: director_pb2.UpdateEnvoyStatusRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.name)
        try:
            self.director.heard_from(name)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        response = director_pb2.UpdateEnvoyStatusResponse()
        response.health_check_period.seconds = self.director.health_check_period
        return response

    @made_by("envoy")
    async def WaitExperiment(self, request: director_pb2.WaitExperimentRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.collaborator_name)
        try:
            experiment = await self.director.wait_experiment(name)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        return director_pb2.WaitExperimentResponse(experiment_name=experiment.plan.name)

    @made_by("envoy")
    async def GetExperimentData(self, request: director_pb2.GetExperimentDataRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.collaborator_name)
        experiment = await find_envoys_experiment(self.director, context, request.experiment_name, name)
        if experiment.ended:
            await refuse(context, grpc.StatusCode.NOT_FOUND, f"experiment '{experiment.plan.name}' has ended")
        with experiment.folder.archive.open("rb") as archive:
            while piece := archive.read(PIECE_BYTES):
                yield director_pb2.ExperimentData(size=len(piece), npbytes=piece)

    @made_by("envoy")
    async def SetExperimentFailed(self, request: director_pb2.SetExperimentFailedRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.collaborator_name)
        experiment = await find_envoys_experiment(self.director, context, request.experiment_name, name)
        experiment.leave(name, request.error_description[-MAX_REASON_CHARACTERS:] or "failed without a reason")
        self.director.assign()
        return director_pb2.SetExperimentFailedResponse()

    # Calls of notebooks

    @made_by("user")
    async def GetExperimentStatus(self, request: director_pb2.GetExperimentStatusRequest, context: Context):  # noqa: N802
        experiment = await find_users_experiment(self.director, self.gate, context, request.experiment_name)
        return director_pb2.GetExperimentStatusResponse(experiment_status=experiment.state.status.value)

    @made_by("user")
    async def GetMetricStream(self, request: director_pb2.GetMetricStreamRequest, context: Context):  # noqa: N802
        experiment = await find_users_experiment(self.director, self.gate, context, request.experiment_name)
        async for line in experiment.history():
            record = json.loads(line)
            if "round" not in record:
                continue
            for origin, tasks in {"aggregator": record["metrics"], **record["envoys"]}.items():
                for task, metrics in tasks.items():
                    for name, value in metrics.items():
                        yield director_pb2.GetMetricStreamResponse(
                            round=record["round"],
                            metric_origin=origin,
                            task_name=task,
                            metric_name=name,
                            metric_value=value,
                        )

    @made_by("user")
    async def GetDatasetInfo(self, request: director_pb2.GetDatasetInfoRequest, context: Context):  # noqa: N802
        await self.gate.user(context)
        self.director.expect_experiments()
        response = director_pb2.GetDatasetInfoResponse()
        for entry in self.director.envoys.values():
            response.shard_info.sample_shape[:] = entry.shard_info.sample_shape
            response.shard_info.target_shape[:] = entry.shard_info.target_shape
        return response

    @made_by("user")
    async def GetEnvoys(self, request: director_pb2.GetEnvoysRequest, context: Context):  # noqa: N802
        await self.gate.user(context)
        response = director_pb2.GetEnvoysResponse()
        for name, entry in sorted(self.director.envoys.items()):
            info = response.envoy_infos.add(
                shard_info=entry.shard_info,
                is_online=self.director.is_online(name),
                is_experiment_running=entry.experiment is not None,
                experiment_name=entry.experiment.plan.name if entry.experiment else "",
            )
            info.last_updated.GetCurrentTime() if entry.attending else info.last_updated.FromSeconds(
                int(entry.last_seen)
            )
            info.valid_duration.seconds = 2 * self.director.health_check_period
        return response


class AggregatorService(aggregator_pb2_grpc.AggregatorServicer):
    """OpenFL's aggregator service, on the director's port: a call belongs to the experiment of its federation id."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    @made_by("envoy")
    async def GetTasks(self, request: aggregator_pb2.GetTasksRequest, context: Context):  # noqa: N802
        experiment, name = await self._find(context, request.header)
        try:
            tasks, round_number = await experiment.wait_for_tasks(name)
        except LackError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        return aggregator_pb2.GetTasksResponse(
            header=_answer(request.header),
            round_number=round_number,
            tasks=[aggregator_pb2.Task(**task.model_dump()) for task in tasks],
            quit=experiment.ended or name in experiment.state.left,
        )

    # The rest is for OpenFL's own envoys.

    @made_by("envoy")
    async def GetAggregatedTensor(self, request: aggregator_pb2.GetAggregatedTensorRequest, context: Context):  # noqa: N802
        experiment, _ = await self._find(context, request.header)
        try:
            tensor = named_tensor(experiment, request.tensor_name, request.round_number, list(request.tags))
        except UpdateRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        experiment.bytes_down += len(tensor.data_bytes)
        return aggregator_pb2.GetAggregatedTensorResponse(
            header=_answer(request.header), round_number=request.round_number, tensor=tensor
        )

    @made_by("envoy")
    async def SendLocalTaskResults(self, request_iterator, context: Context):  # noqa: N802
        pieces = aiter(request_iterator)
        first = await anext(pieces, base_pb2.DataStream())
        try:
            header = header_of_results(first.npbytes)
        except DecodeError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not the results of a task: {error}")
        experiment, name = await self._find(context, header)
        try:
            with experiment.transfer("results", name):
                buffer = await self._put_together(first.npbytes, pieces, most_bytes_of_results(experiment), context)
        except CallEndedError as error:
            await refuse(context, grpc.StatusCode.ABORTED, str(error))
        try:
            results = aggregator_pb2.TaskResults.FromString(bytes(buffer))
        except DecodeError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not the results of a task: {error}")
        experiment, name = await self._find(context, results.header)
        experiment.bytes_up += len(buffer)
        try:
            await receive_results(experiment, name, results)
        except UpdateRefusedError as error:
            # OpenFL's envoy repeats a call that fails, for ever; the reason is in the history.
            logger.warning("%s", error)
        return aggregator_pb2.SendLocalTaskResultsResponse(header=_answer(results.header))

    @staticmethod
    async def _put_together(first: bytes, pieces: AsyncIterator, most_bytes: int, context: Context) -> bytearray:
        buffer = bytearray(first)
        async for piece in pieces:
            buffer += piece.npbytes
            if len(buffer) > most_bytes:
                sentence = f"the results are larger than {most_bytes} bytes, which the model could need"
                await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        return buffer

    async def _find(self, context: Context, header: aggregator_pb2.MessageHeader) -> tuple[Experiment, str]:
        """The experiment of a call and the envoy that makes it; ends the call if there is none."""
        name = await self.gate.envoy(context, header.sender)
        experiment = self.director.federations.get(header.federation_uuid)
        if experiment is not None and name in experiment.participants:
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


class RoundsService:
    """The service `openfl_audio.Rounds`: one call for a whole model. Messages: see `openfl_audio.protocol.wire`."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate
        self._uploads, self._downloads = Uploads(), Downloads()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Attend": grpc.unary_stream_rpc_method_handler(self.attend),
                "GetModel": grpc.unary_stream_rpc_method_handler(self.get_model),
                "SendUpdate": grpc.stream_stream_rpc_method_handler(self.send_update),
                "Submit": grpc.stream_stream_rpc_method_handler(self.submit),
                "GetHistory": grpc.unary_stream_rpc_method_handler(self.get_history),
                "GetExperiment": grpc.unary_unary_rpc_method_handler(self.get_experiment),
                "StopExperiment": grpc.unary_unary_rpc_method_handler(self.stop_experiment),
                "GetStatus": grpc.unary_unary_rpc_method_handler(self.get_status),
            },
        )

    # Calls of envoys

    @made_by("envoy")
    async def attend(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Stays open as long as the envoy is there; says what it has to do whenever that changes."""
        message = await parse(context, request, AttendRequest)
        name = await self.gate.envoy(context, message.envoy)
        try:
            async for order in self.director.attend(name, message.instance):
                yield encode(order)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))

    @made_by("envoy", "user")
    async def get_model(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """This round's global model for an envoy, or a kept one for a user."""
        message = await parse(context, request, ModelRequest)
        with self._downloads.piece_sizes() as sizes:
            if message.envoy is not None:
                name = await self.gate.envoy(context, message.envoy)
                experiment = await find_envoys_experiment(self.director, context, message.experiment, name)
                pieces, peer = experiment.global_model(sizes), name
            else:
                experiment = await find_users_experiment(self.director, self.gate, context, message.experiment)
                try:
                    pieces = experiment.kept_model(message.which, sizes)
                except WireError as error:
                    await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
                peer = f"user '{experiment.owner}'"
            with experiment.transfer("download", peer), contextlib.closing(pieces):
                async for piece in without_blocking(pieces):
                    yield piece

    @made_by("envoy")
    async def send_update(self, request_iterator: AsyncIterator[bytes], context: Context) -> None:
        """Tensors as `protocol.tensors.stream` gives them, with an UpdateMessage as metadata; answers {"counted"}."""
        pieces = aiter(request_iterator)
        try:
            packed = await anext(pieces, b"")
            # With tens of thousands of tensors it takes seconds.
            header = await unless_small(MAX_COMPRESSION * len(packed), Header.unpack, packed)
            sender = decode(encode(header.metadata), UpdateEnvelope)
            name = await self.gate.envoy(context, sender.envoy)
            experiment = await find_envoys_experiment(self.director, context, sender.experiment, name)
            experiment.bytes_up += len(packed)
            async with self._with_leave(pieces, context) as data:
                counted = await experiment.receive_update(sender, header, data)
        except (WireError, TensorFormatError, UpdateRefusedError) as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except BrokenUploadError as error:
            await refuse(context, grpc.StatusCode.ABORTED, str(error))
        except LackError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, f"experiment '{sender.experiment}' waits: {error}")
        await context.write(encode({"counted": counted}))

    def _with_leave(self, pieces: AsyncIterator[bytes], context: Context) -> aclosing[AsyncGenerator[bytes, None]]:
        """`pieces`; the answers {"leave": [n, size]} say for how many more there is room: see `wire.send_pieces`."""

        async def give_leave(pieces: int, size: int) -> None:
            await context.write(encode({"leave": [pieces, size]}))

        return aclosing(self._uploads.receive(pieces, give_leave))

    # Calls of notebooks

    @made_by("user")
    async def submit(self, request_iterator: AsyncIterator[bytes], context: Context) -> None:
        """An experiment, in pieces; answers {} when it is accepted."""
        owner = await self.gate.user(context)
        try:
            with telling_lack(self.director.runs):
                await self._take_submission(request_iterator, context, owner)
        except SubmissionError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LackError as error:
            sentence = f"the experiment cannot be taken in: {error}; submit it again later"
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        await context.write(encode({}))

    async def _take_submission(self, request_iterator: AsyncIterator[bytes], context: Context, owner: str) -> None:
        with tempfile.NamedTemporaryFile(dir=self.director.runs, prefix=SUBMISSION) as file:
            async with self._with_leave(aiter(request_iterator), context) as pieces:
                async for piece in pieces:
                    file.write(piece)
                    if file.tell() > MAX_SUBMISSION_BYTES:
                        sentence = f"the experiment is larger than {MAX_SUBMISSION_BYTES} bytes"
                        await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
            file.flush()
            await self.director.submit(Path(file.name), owner)

    @made_by("user")
    async def get_history(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Messages of `Experiment.history`, then {"status", "error"}."""
        message = await parse(context, request, HistoryRequest)
        experiment = await find_users_experiment(self.director, self.gate, context, message.experiment)
        async for line in experiment.history(message.first, message.follow):
            yield line
        yield encode({"status": experiment.state.status.value, "error": experiment.state.error})

    @made_by("user")
    async def get_experiment(self, request: bytes, context: Context) -> bytes:
        """An experiment as it is now: `Experiment.summary`, and under "history" the last records of its rounds."""
        message = await parse(context, request, ExperimentRequest)
        experiment = await find_users_experiment(self.director, self.gate, context, message.experiment)
        latest = await asyncio.to_thread(experiment.folder.history.latest, MAX_LATEST_BYTES)
        return encode({**experiment.summary(), "history": latest})

    @made_by("user")
    async def stop_experiment(self, request: bytes, context: Context) -> bytes:
        message = await parse(context, request, ExperimentRequest)
        experiment = await find_users_experiment(self.director, self.gate, context, message.experiment)
        experiment.stop()
        self.director.assign()
        return encode({})

    @made_by("user")
    async def get_status(self, request: bytes, context: Context) -> bytes:
        """Envoys and experiments: see `Director.status`."""
        await parse(context, request, StatusRequest)
        return encode(self.director.status(await self.gate.user(context)))


async def find_envoys_experiment(director: Director, context: Context, experiment: str, envoy: str) -> Experiment:
    found = director.experiments.get(experiment)
    if found is None or envoy not in found.participants:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"envoy '{envoy}' has no experiment '{experiment[:80]}'")
    return found


async def find_users_experiment(director: Director, gate: Gate, context: Context, experiment: str) -> Experiment:
    user = await gate.user(context)
    found = director.experiments.get(experiment)
    unusable = director.unusable.get(experiment)
    if unusable is not None and unusable.owner in ("", user):
        sentence = f"experiment '{experiment}' cannot be taken up: {unusable.reason}"
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, sentence)
    if found is None or found.owner != user:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"user '{user}' has no experiment '{experiment[:80]}'")
    return found
