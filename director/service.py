"""gRPC on one port: OpenFL's `Director` and `Aggregator` services, and `openfl_audio.Rounds` for whole models."""

import logging
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn, TypeAlias

import grpc
from grpc import aio
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, director_pb2, director_pb2_grpc

from director.director import Director, EnvoyRefusedError
from director.experiment import Experiment
from director.rounds import TaskResult, Update, UpdateRefusedError
from director.run_folder import SubmissionError
from federation.certificates import CertificateError, role_of
from federation.wire import PIECE_BYTES, SERVICE, WireError, decode, encode, pieces, unpack

logger = logging.getLogger(__name__)

Context: TypeAlias = aio.ServicerContext
MAX_SUBMISSION_BYTES = 4 << 30
MAX_UPDATE_BYTES = 4 << 30


async def refuse(context: Context, code: grpc.StatusCode, sentence: str) -> NoReturn:
    logger.warning("refused a call of %s: %s", context.peer(), sentence)
    await context.abort(code, sentence)
    raise RuntimeError("abort always raises")


class Gate:
    """Who is calling, and may they? With TLS the certificate says so, without it everybody is who they say."""

    def __init__(self, tls: bool) -> None:
        self.tls = tls

    async def envoy(self, context: Context, claimed: str) -> str:
        """The calling envoy's name; ends the call if the certificate is not that envoy's."""
        if self.tls:
            name, role = await self._certificate(context)
            if role != "envoy" or name != claimed:
                sentence = f"the certificate is that of {role} '{name}', the call is made as envoy '{claimed}'"
                await refuse(context, grpc.StatusCode.PERMISSION_DENIED, sentence)
        return claimed

    async def user(self, context: Context) -> str:
        """The calling user's name; ends the call if the certificate is not a user's."""
        if not self.tls:
            return _header(context, "client_id") or "anonymous"
        name, role = await self._certificate(context)
        if role != "user":
            sentence = f"the certificate is that of {role} '{name}', this call is for notebook users"
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, sentence)
        return name

    @staticmethod
    async def _certificate(context: Context) -> tuple[str, str]:
        try:
            return role_of(context.auth_context()["x509_pem_cert"][0])
        except CertificateError as error:
            return await refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(error))


def _header(context: Context, key: str) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return str(value)
    return ""


class DirectorService(director_pb2_grpc.DirectorServicer):
    """OpenFL's director service."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    # Calls of envoys

    async def UpdateShardInfo(self, request: director_pb2.UpdateShardInfoRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.shard_info.node_info.name)
        try:
            await self.director.register(request.shard_info, _header(context, "instance") or name, context.peer())
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, str(error))
        return director_pb2.UpdateShardInfoResponse(accepted=True)

    async def UpdateEnvoyStatus(self, request: director_pb2.UpdateEnvoyStatusRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.name)
        try:
            self.director.heard_from(name, request.is_experiment_running)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        response = director_pb2.UpdateEnvoyStatusResponse()
        response.health_check_period.seconds = self.director.health_check_period
        return response

    async def WaitExperiment(self, request: director_pb2.WaitExperimentRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.collaborator_name)
        instance = _header(context, "instance")
        if instance:
            # This call stays open as long as an envoy of ours is alive and idle, so its end is news.
            context.add_done_callback(
                lambda call: self.director.lost_connection(name, instance) if call.cancelled() else None
            )
        try:
            experiment = await self.director.wait_experiment(name)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        return director_pb2.WaitExperimentResponse(experiment_name=experiment.plan.name)

    async def GetExperimentData(self, request: director_pb2.GetExperimentDataRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.collaborator_name)
        experiment = await find_envoys_experiment(self.director, context, request.experiment_name, name)
        with experiment.folder.archive.open("rb") as archive:
            while piece := archive.read(PIECE_BYTES):
                yield director_pb2.ExperimentData(size=len(piece), npbytes=piece)

    async def SetExperimentFailed(self, request: director_pb2.SetExperimentFailedRequest, context: Context):  # noqa: N802
        name = await self.gate.envoy(context, request.collaborator_name)
        experiment = await find_envoys_experiment(self.director, context, request.experiment_name, name)
        await experiment.fail(f"envoy '{name}': {request.error_description}")
        await self.director.start_ready_experiments()
        return director_pb2.SetExperimentFailedResponse()

    # Calls of notebooks

    async def SetNewExperiment(self, request_iterator, context: Context):  # noqa: N802
        owner = await self.gate.user(context)
        self.director.runs.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.director.runs, prefix=".submission-") as file:
            async for request in request_iterator:
                file.write(request.experiment_data.npbytes)
                if file.tell() > MAX_SUBMISSION_BYTES:
                    sentence = f"the experiment is larger than {MAX_SUBMISSION_BYTES} bytes"
                    await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
            file.flush()
            try:
                await self.director.submit(Path(file.name), owner)
            except SubmissionError as error:
                await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return director_pb2.SetNewExperimentResponse(accepted=True)

    async def GetExperimentStatus(self, request: director_pb2.GetExperimentStatusRequest, context: Context):  # noqa: N802
        experiment = await find_users_experiment(self.director, self.gate, context, request.experiment_name)
        return director_pb2.GetExperimentStatusResponse(experiment_status=experiment.status.value)

    async def GetMetricStream(self, request: director_pb2.GetMetricStreamRequest, context: Context):  # noqa: N802
        experiment = await find_users_experiment(self.director, self.gate, context, request.experiment_name)
        async for record in experiment.history():
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

    async def GetDatasetInfo(self, request: director_pb2.GetDatasetInfoRequest, context: Context):  # noqa: N802
        await self.gate.user(context)
        response = director_pb2.GetDatasetInfoResponse()
        for entry in self.director.envoys.values():
            response.shard_info.sample_shape[:] = entry.shard_info.sample_shape
            response.shard_info.target_shape[:] = entry.shard_info.target_shape
        return response

    async def GetEnvoys(self, request: director_pb2.GetEnvoysRequest, context: Context):  # noqa: N802
        await self.gate.user(context)
        response = director_pb2.GetEnvoysResponse()
        for _, entry in sorted(self.director.envoys.items()):
            info = response.envoy_infos.add(
                shard_info=entry.shard_info,
                is_online=self.director.is_online(entry),
                is_experiment_running=entry.is_experiment_running,
                experiment_name=entry.experiment.plan.name if entry.experiment else "",
            )
            info.last_updated.seconds = int(entry.last_seen)
            info.valid_duration.seconds = 2 * self.director.health_check_period
        return response


class AggregatorService(aggregator_pb2_grpc.AggregatorServicer):
    """OpenFL's aggregator service, on the director's port: a call belongs to the experiment of its federation id."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    async def GetTasks(self, request: aggregator_pb2.GetTasksRequest, context: Context):  # noqa: N802
        header = request.header
        name = await self.gate.envoy(context, header.sender)
        matches = [e for e in self.director.experiments.values() if e.plan.federation_uuid == header.federation_uuid]
        if not matches or name not in matches[0].plan.envoys:
            sentence = f"no experiment of federation id '{header.federation_uuid}' for envoy '{name}'"
            await refuse(context, grpc.StatusCode.NOT_FOUND, sentence)
        experiment = matches[0]
        tasks, round_number = await experiment.wait_for_tasks(name)
        return aggregator_pb2.GetTasksResponse(
            header=aggregator_pb2.MessageHeader(
                sender=header.receiver, receiver=name, federation_uuid=header.federation_uuid
            ),
            round_number=round_number,
            tasks=[aggregator_pb2.Task(**task.model_dump()) for task in tasks],
            quit=experiment.ended,
        )


class RoundsService:
    """The service `openfl_audio.Rounds`: one call for a whole model. Messages: see `federation.wire`."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetModel": grpc.unary_stream_rpc_method_handler(self.get_model),
                "SendUpdate": grpc.stream_unary_rpc_method_handler(self.send_update),
                "GetHistory": grpc.unary_stream_rpc_method_handler(self.get_history),
            },
        )

    async def get_model(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """{"experiment", "envoy"} gives this round's global model; {"experiment", "which"} a user a kept one."""
        message = decode(request)
        if "envoy" in message:
            name = await self.gate.envoy(context, message["envoy"])
            experiment = await find_envoys_experiment(self.director, context, message["experiment"], name)
            data = experiment.global_model()
        else:
            experiment = await find_users_experiment(self.director, self.gate, context, message["experiment"])
            try:
                data = experiment.folder.load_model(message["which"])
            except WireError as error:
                await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        for piece in pieces(data):
            yield piece

    async def send_update(self, request_iterator: AsyncIterator[bytes], context: Context) -> bytes:
        """A safetensors file with metadata {"experiment", "envoy", "round", "results": {task: {"size", "metrics"}}}."""
        buffer = bytearray()
        async for piece in request_iterator:
            buffer += piece
            if len(buffer) > MAX_UPDATE_BYTES:
                sentence = f"the update is larger than {MAX_UPDATE_BYTES} bytes"
                await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        try:
            tensors, metadata = unpack(bytes(buffer))
            results = {task: TaskResult(**result) for task, result in metadata["results"].items()}
            update = Update(metadata["envoy"], metadata["round"], results, tensors)
            name = await self.gate.envoy(context, update.envoy)
            experiment = await find_envoys_experiment(self.director, context, metadata["experiment"], name)
            await experiment.add_update(update, len(buffer))
        except (WireError, UpdateRefusedError) as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (KeyError, TypeError, AttributeError) as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not an update: {error!r}")
        if experiment.ended:
            await self.director.start_ready_experiments()
        return encode({})

    async def get_history(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """{"experiment"} gives one JSON record a round until the experiment ends; a failed one ends with its error."""
        experiment = await find_users_experiment(self.director, self.gate, context, decode(request)["experiment"])
        async for record in experiment.history():
            yield encode(record)
        if experiment.error:
            await refuse(context, grpc.StatusCode.ABORTED, experiment.error)


async def find_envoys_experiment(director: Director, context: Context, experiment: str, envoy: str) -> Experiment:
    found = director.experiments.get(experiment)
    if found is None or envoy not in found.plan.envoys:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"envoy '{envoy}' has no experiment '{experiment}'")
    return found


async def find_users_experiment(director: Director, gate: Gate, context: Context, experiment: str) -> Experiment:
    user = await gate.user(context)
    found = director.experiments.get(experiment)
    if found is None or found.owner != user:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"user '{user}' has no experiment '{experiment}'")
    return found
