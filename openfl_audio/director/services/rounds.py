"""The service `openfl_audio.Rounds`: whole models, and what notebooks of this project ask."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import grpc

from openfl_audio.director.authorization import READERS, STEERERS, Context, Gate, made_by, refuse
from openfl_audio.director.director import SUBMISSION, Director
from openfl_audio.director.flow_control import Downloads, Uploads
from openfl_audio.director.intake import unless_small
from openfl_audio.director.pace import Pace
from openfl_audio.director.services.lookup import find_caller, find_envoys_experiment, find_persons_experiment
from openfl_audio.director.shortage import telling_lack
from openfl_audio.errors import (
    BrokenUploadError,
    EnvoyRefusedError,
    LackError,
    RecordError,
    SecureAggregationError,
    SteeringError,
    SubmissionError,
    TensorFormatError,
    UpdateRefusedError,
    WireError,
)
from openfl_audio.protocol.certificates import ENVOY, USER, Credentials
from openfl_audio.protocol.codec import Kind, decode, encode, validate
from openfl_audio.protocol.messages import (
    Accepted,
    ApprovalReport,
    AttendRequest,
    Counted,
    Credit,
    DetailsRequest,
    DropRequest,
    Ended,
    ExperimentRequest,
    HeadAnswer,
    HeadRequest,
    HistoryRequest,
    LogRequest,
    ModelRequest,
    ProgressReport,
    Reported,
    SecureRequest,
    StatusRequest,
    UpdateEnvelope,
)
from openfl_audio.protocol.tensors import Header
from openfl_audio.protocol.wire import SERVICE

Item = TypeVar("Item")
# One byte that zlib has packed becomes so many at most.
MAX_COMPRESSION = 1032
MAX_SUBMISSION_BYTES = 64 << 30
# Bytes of a history that goes with other news of an experiment. The whole of it may be gigabytes.
MAX_LATEST_BYTES = 1 << 20
# An envoy exchanges heads once a round. Checking a signature and making one takes a fifth of a millisecond.
HEADS_PACE_SECONDS = 0.01


class RoundsService:
    """The service `openfl_audio.Rounds`, with the messages of `openfl_audio.protocol.messages`."""

    def __init__(self, director: Director, gate: Gate, credentials: Callable[[], Credentials | None]) -> None:
        """Serve `director`; `credentials` gives the certificate and key that it has now, None without TLS."""
        self.director = director
        self.gate = gate
        self._credentials = credentials
        self._uploads, self._downloads = Uploads(), Downloads()
        self._heads_pace = Pace(HEADS_PACE_SECONDS)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return gRPC's handler of the calls."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Attend": grpc.unary_stream_rpc_method_handler(self.attend),
                "GetModel": grpc.unary_stream_rpc_method_handler(self.get_model),
                "SendUpdate": grpc.stream_stream_rpc_method_handler(self.send_update),
                "ExchangeHeads": grpc.unary_unary_rpc_method_handler(self.exchange_heads),
                "SecureStage": grpc.unary_unary_rpc_method_handler(self.secure_stage),
                "ReportProgress": grpc.unary_unary_rpc_method_handler(self.report_progress),
                "ReportApproval": grpc.unary_unary_rpc_method_handler(self.report_approval),
                "Submit": grpc.stream_stream_rpc_method_handler(self.submit),
                "GetHistory": grpc.unary_stream_rpc_method_handler(self.get_history),
                "GetExperiment": grpc.unary_unary_rpc_method_handler(self.get_experiment),
                "StopExperiment": grpc.unary_unary_rpc_method_handler(self.stop_experiment),
                "ResumeExperiment": grpc.unary_unary_rpc_method_handler(self.resume_experiment),
                "DeleteExperiment": grpc.unary_unary_rpc_method_handler(self.delete_experiment),
                "DropEnvoy": grpc.unary_unary_rpc_method_handler(self.drop_envoy),
                "GetLog": grpc.unary_stream_rpc_method_handler(self.get_log),
                "GetStatus": grpc.unary_unary_rpc_method_handler(self.get_status),
            },
        )

    # Calls of envoys

    @made_by("envoy")
    async def attend(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Answer with an Order whenever what the envoy has to do changes, as long as the envoy is there."""
        message = await parse(context, request, AttendRequest)
        name = await self.gate.envoy(context, message.envoy)
        try:
            async for order in self.director.attend(name, message.instance):
                yield encode(order)
        except EnvoyRefusedError as error:
            await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))

    @made_by("envoy", *STEERERS)
    async def get_model(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Answer with this round's global model for an envoy, or a kept one for a user, in chunks."""
        message = await parse(context, request, ModelRequest)
        measuring: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        with self._downloads.chunk_sizes() as sizes:
            if message.envoy is not None:
                name = await self.gate.envoy(context, message.envoy)
                experiment = await find_envoys_experiment(self.director, context, message.experiment, name)
                chunks, peer = experiment.scheduler.global_model(name, sizes), name
                measuring = experiment.clock.measure(name, "download")
            else:
                experiment = await find_persons_experiment(self.director, self.gate, context, message.experiment)
                try:
                    chunks = experiment.view.kept_model(message.which, sizes)
                except WireError as error:
                    await refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
                peer = f"user '{experiment.owner}'"
                experiment.note("fetched", model=message.which, by=str(await self.gate.person(context)))
            with measuring, experiment.transfers.open("download", peer), contextlib.closing(chunks):
                async for chunk in without_blocking(chunks):
                    yield chunk

    @made_by("envoy")
    async def send_update(self, request_iterator: AsyncIterator[bytes], context: Context) -> None:
        """Take in an update, as `tensors.stream` sends it with an UpdateMessage as metadata. Answers with Counted."""
        chunks = aiter(request_iterator)
        try:
            packed = await anext(chunks, b"")
            # With tens of thousands of tensors it takes seconds.
            header = await unless_small(MAX_COMPRESSION * len(packed), Header.unpack, packed)
            sender = validate(header.metadata, UpdateEnvelope)
            name = await self.gate.envoy(context, sender.envoy)
            experiment = await find_envoys_experiment(self.director, context, sender.experiment, name)
            experiment.intake.n_bytes += len(packed)
            async with self._with_credit(chunks, context) as data:
                with experiment.clock.measure(name, "upload"):
                    counted = await experiment.intake.receive(sender, header, data)
        except (WireError, TensorFormatError, UpdateRefusedError) as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except BrokenUploadError as error:
            await refuse(context, grpc.StatusCode.ABORTED, str(error))
        except LackError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, f"experiment '{sender.experiment}' waits: {error}")
        await context.write(encode(Counted(counted=counted)))

    def _with_credit(self, chunks: AsyncIterator[bytes], context: Context) -> aclosing[AsyncGenerator[bytes, None]]:
        """Return `chunks`, and answer with a Credit whenever there is room for more: see `wire.send_chunks`."""

        async def grant(chunks: int, size: int) -> None:
            await context.write(encode(Credit(chunks=chunks, chunk_bytes=size)))

        return aclosing(self._uploads.receive(chunks, grant))

    @made_by("envoy")
    async def secure_stage(self, request: bytes, context: Context) -> bytes:
        """Take in an envoy's message of a stage of a secure round. Answers with SecureAnswer, as a long poll."""
        message = await parse(context, request, SecureRequest)
        name = await self.gate.envoy(context, message.envoy)
        experiment = await find_envoys_experiment(self.director, context, message.experiment, name)
        experiment.intake.n_bytes += len(request)
        try:
            if experiment.secure is None:
                raise SecureAggregationError(f"experiment '{message.experiment}' has no secure rounds")
            answer = encode(await experiment.secure.answer(message))
        except SecureAggregationError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        experiment.scheduler.n_bytes += len(answer)
        return answer

    @made_by("envoy")
    async def report_progress(self, request: bytes, context: Context) -> bytes:
        """Note how far the task of an envoy is. Answers with Reported."""
        message = await parse(context, request, ProgressReport)
        name = await self.gate.envoy(context, message.envoy)
        experiment = await find_envoys_experiment(self.director, context, message.experiment, name)
        if message.log:
            experiment.logs.add(name, message.log)
        return encode(Reported(seconds=experiment.live.note(message)))

    @made_by("envoy")
    async def report_approval(self, request: bytes, context: Context) -> bytes:
        """Note that an experiment waits for the approval of an envoy's site, or does no more. Answers with Accepted."""
        message = await parse(context, request, ApprovalReport)
        name = await self.gate.envoy(context, message.envoy)
        experiment = await find_envoys_experiment(self.director, context, message.experiment, name)
        if experiment.ended:
            await refuse(context, grpc.StatusCode.NOT_FOUND, f"experiment '{experiment.plan.name}' has ended")
        experiment.note_approval(name, message.waits)
        self.director.assign()
        return encode(Accepted())

    @made_by("envoy")
    async def exchange_heads(self, request: bytes, context: Context) -> bytes:
        """Keep the head of an envoy's record, in its turn. Answers with a HeadAnswer, that of the director's."""
        message = await parse(context, request, HeadRequest)
        name = await self.gate.envoy(context, message.envoy)
        await self._heads_pace.turn(name)
        try:
            self.director.heads.take(f"{ENVOY} '{name}'", message.head, self.gate.certificate(context), None)
        except RecordError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return encode(HeadAnswer(head=self.director.heads.own(self._credentials())))

    # Calls of notebooks, operators and monitors

    @made_by(USER)
    async def submit(self, request_iterator: AsyncIterator[bytes], context: Context) -> None:
        """Take in an experiment, in chunks. Answers with Accepted."""
        owner = (await self.gate.person(context)).name
        try:
            with telling_lack(self.director.runs):
                await self._take_submission(request_iterator, context, owner)
        except SubmissionError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LackError as error:
            sentence = f"the experiment cannot be taken in: {error}; submit it again later"
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        await context.write(encode(Accepted()))

    async def _take_submission(self, request_iterator: AsyncIterator[bytes], context: Context, owner: str) -> None:
        with tempfile.NamedTemporaryFile(dir=self.director.runs, prefix=SUBMISSION) as file:
            async with self._with_credit(aiter(request_iterator), context) as chunks:
                async for chunk in chunks:
                    file.write(chunk)
                    if file.tell() > MAX_SUBMISSION_BYTES:
                        sentence = f"the experiment is larger than {MAX_SUBMISSION_BYTES} bytes"
                        await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
            file.flush()
            await self.director.submit(Path(file.name), owner)

    @made_by(*READERS)
    async def get_history(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Answer with the messages of `View.history`, then with an Ended."""
        message = await parse(context, request, HistoryRequest)
        experiment = await find_persons_experiment(self.director, self.gate, context, message.experiment)
        async for line in experiment.view.history(message.first, message.follow, message.live):
            yield line
        yield encode(Ended(status=experiment.state.status.value, error=experiment.state.error))

    @made_by(USER)
    async def get_log(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Answer with what the tasks of an envoy printed, as UTF-8 in chunks."""
        message = await parse(context, request, LogRequest)
        experiment = await find_persons_experiment(self.director, self.gate, context, message.experiment)
        if message.envoy not in experiment.envoys:
            sentence = f"envoy '{message.envoy[:80]}' is no member of experiment '{message.experiment}'"
            await refuse(context, grpc.StatusCode.NOT_FOUND, sentence)
        async for chunk in experiment.logs.read(message.envoy, lambda: experiment.ended or not message.follow):
            yield chunk

    @made_by(*READERS)
    async def get_experiment(self, request: bytes, context: Context) -> bytes:
        """Answer with the ExperimentDetails of an experiment as it is now."""
        message = await parse(context, request, DetailsRequest)
        experiment = await find_persons_experiment(self.director, self.gate, context, message.experiment)
        n_bytes = MAX_LATEST_BYTES if message.latest else 0
        latest = await asyncio.to_thread(experiment.folder.history.latest, n_bytes)
        return encode(experiment.view.details() | {"history": latest})

    @made_by(*STEERERS)
    async def stop_experiment(self, request: bytes, context: Context) -> bytes:
        """End an experiment. Answers with Accepted."""
        message = await parse(context, request, ExperimentRequest)
        experiment = await find_persons_experiment(self.director, self.gate, context, message.experiment)
        if not experiment.ended:
            experiment.note("stopped", by=str(await self.gate.person(context)))
        experiment.stop()
        self.director.assign()
        return encode(Accepted())

    @made_by(USER)
    async def resume_experiment(self, request: bytes, context: Context) -> bytes:
        """Let an experiment that failed or was stopped continue. Answers with Accepted."""
        message = await parse(context, request, ExperimentRequest)
        await find_persons_experiment(self.director, self.gate, context, message.experiment)
        caller = await self.gate.person(context)
        async with _refusing_steering(context):
            await self.director.resume(message.experiment)
        self.director.record.note("resumed", experiment=message.experiment, by=str(caller))
        return encode(Accepted())

    @made_by(*STEERERS)
    async def delete_experiment(self, request: bytes, context: Context) -> bytes:
        """Remove an experiment that has ended. Answers with Accepted."""
        message = await parse(context, request, ExperimentRequest)
        caller = await find_caller(self.director, self.gate, context, message.experiment)
        async with _refusing_steering(context):
            await self.director.delete(message.experiment, str(caller))
        return encode(Accepted())

    @made_by(*STEERERS)
    async def drop_envoy(self, request: bytes, context: Context) -> bytes:
        """Let an experiment continue without one of its envoys. Answers with Accepted."""
        message = await parse(context, request, DropRequest)
        experiment = await find_persons_experiment(self.director, self.gate, context, message.experiment)
        caller = await self.gate.person(context)
        async with _refusing_steering(context):
            experiment.scheduler.drop(message.envoy, f"was dropped by {caller}")
        experiment.note("dropped", envoy=message.envoy, by=str(caller))
        self.director.assign()
        return encode(Accepted())

    @made_by(*READERS)
    async def get_status(self, request: bytes, context: Context) -> bytes:
        """Answer with the FederationStatus."""
        await parse(context, request, StatusRequest)
        return encode(self.director.status(await self.gate.person(context)))


@contextlib.asynccontextmanager
async def _refusing_steering(context: Context) -> AsyncIterator[None]:
    """End the call with the sentence of a SteeringError of the block."""
    try:
        yield
    except SteeringError as error:
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))


async def parse(context: Context, request: bytes, kind: type[Kind]) -> Kind:
    """Return the request as a message; end the call if it is none."""
    try:
        return decode(request, kind)
    except WireError as error:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))


async def without_blocking(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield items of a generator that reads files, and let other calls run between them."""
    for item in items:
        yield item
        await asyncio.sleep(0)
