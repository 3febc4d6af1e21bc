"""OpenFL's service `Director`: envoys register and hear of experiments, notebooks see what there is."""

import json
from typing import Annotated

import grpc
from openfl.protocols import director_pb2, director_pb2_grpc
from pydantic import Field, TypeAdapter, ValidationError

from openfl_audio.director.authorization import READERS, Context, Gate, header_of, made_by, refuse
from openfl_audio.director.director import Director
from openfl_audio.director.services.lookup import find_envoys_experiment, find_persons_experiment
from openfl_audio.errors import EnvoyRefusedError
from openfl_audio.protocol.certificates import USER
from openfl_audio.protocol.codec import MAX_REQUEST_BYTES, describe_faults
from openfl_audio.protocol.plan import NAME
from openfl_audio.protocol.shard_sizes import SIZES
from openfl_audio.protocol.tensors import CHUNK_BYTES

MAX_REASON_CHARACTERS = 10_000
MAX_LAST_ERROR_CHARACTERS = 300
_Text = Annotated[str, Field(max_length=64)]
VERSIONS = TypeAdapter(Annotated[dict[_Text, _Text], Field(max_length=20)])


class DirectorService(director_pb2_grpc.DirectorServicer):
    """OpenFL's director service."""

    def __init__(self, director: Director, gate: Gate) -> None:
        self.director = director
        self.gate = gate

    # Calls of envoys

    @made_by("envoy")
    async def UpdateShardInfo(self, request: director_pb2.UpdateShardInfoRequest, context: Context):  # noqa: N802
        """Register an envoy."""
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
            versions = VERSIONS.validate_json(header_of(context, "versions") or "{}")
        except ValidationError as error:
            sentence = f"sizes of a shard, or versions: {describe_faults(error)}"
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, sentence)
        try:
            entry = self.director.register(request.shard_info, corpus, instance, context.peer(), sizes)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, str(error))
        entry.versions = versions
        entry.certificate_expires = self.gate.expiry(context)
        return director_pb2.UpdateShardInfoResponse(accepted=True)

    @made_by("envoy")
    async def UpdateEnvoyStatus(self, request: director_pb2.UpdateEnvoyStatusRequest, context: Context):  # noqa: N802
        """Note that an envoy of OpenFL is there."""
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
        """Answer with the name of the envoy's experiment, when there is one."""
        name = await self.gate.envoy(context, request.collaborator_name)
        try:
            experiment = await self.director.wait_experiment(name)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        return director_pb2.WaitExperimentResponse(experiment_name=experiment.plan.name)

    @made_by("envoy")
    async def GetExperimentData(self, request: director_pb2.GetExperimentDataRequest, context: Context):  # noqa: N802
        """Answer with the archive of an experiment, in chunks."""
        name = await self.gate.envoy(context, request.collaborator_name)
        experiment = await find_envoys_experiment(self.director, context, request.experiment_name, name)
        if experiment.ended:
            await refuse(context, grpc.StatusCode.NOT_FOUND, f"experiment '{experiment.plan.name}' has ended")
        with experiment.folder.archive.open("rb") as archive:
            while chunk := archive.read(CHUNK_BYTES):
                yield director_pb2.ExperimentData(size=len(chunk), npbytes=chunk)

    @made_by("envoy")
    async def SetExperimentFailed(self, request: director_pb2.SetExperimentFailedRequest, context: Context):  # noqa: N802
        """Let the experiment do without an envoy on which it failed, or fail."""
        name = await self.gate.envoy(context, request.collaborator_name)
        experiment = await find_envoys_experiment(self.director, context, request.experiment_name, name)
        reason = request.error_description[-MAX_REASON_CHARACTERS:] or "failed without a reason"
        experiment.scheduler.depart(name, reason)
        if name in self.director.envoys:
            self.director.envoys[name].last_error = reason.strip().rpartition("\n")[2][:MAX_LAST_ERROR_CHARACTERS]
        self.director.assign()
        return director_pb2.SetExperimentFailedResponse()

    # Calls of notebooks

    @made_by(*READERS)
    async def GetExperimentStatus(self, request: director_pb2.GetExperimentStatusRequest, context: Context):  # noqa: N802
        """Answer with the status of an experiment."""
        experiment = await find_persons_experiment(self.director, self.gate, context, request.experiment_name)
        return director_pb2.GetExperimentStatusResponse(experiment_status=experiment.state.status.value)

    @made_by(*READERS)
    async def GetMetricStream(self, request: director_pb2.GetMetricStreamRequest, context: Context):  # noqa: N802
        """Answer with all metrics of an experiment, round by round until its end."""
        experiment = await find_persons_experiment(self.director, self.gate, context, request.experiment_name)
        async for line in experiment.view.history():
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

    @made_by(*READERS)
    async def GetDatasetInfo(self, request: director_pb2.GetDatasetInfoRequest, context: Context):  # noqa: N802
        """Answer with the shapes of the envoys' samples and targets."""
        if (await self.gate.person(context)).role == USER:
            self.director.expect_experiments()
        response = director_pb2.GetDatasetInfoResponse()
        for entry in self.director.envoys.values():
            response.shard_info.sample_shape[:] = entry.shard_info.sample_shape
            response.shard_info.target_shape[:] = entry.shard_info.target_shape
        return response

    @made_by(*READERS)
    async def GetEnvoys(self, request: director_pb2.GetEnvoysRequest, context: Context):  # noqa: N802
        """Answer with the registered envoys."""
        await self.gate.person(context)
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
