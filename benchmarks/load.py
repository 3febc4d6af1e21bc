#!/usr/bin/env python3
"""Cost of many envoys to a director: seconds a round, memory and open files, when nobody trains anything.

    python benchmarks/load.py                                   # 10, 50, 100, 250 and 500 envoys, a table
    python benchmarks/load.py --envoys 100 500 --tls --json     # a JSON object a line
    python benchmarks/load.py --envoys 50 --secure              # plain, then with secure aggregation, with TLS

The director is a real process. The envoys are connections of their own from this process: each registers, attends,
waits for its task, fetches the global model and sends an update of the same size, as an envoy and its worker do, but
without torch. The seconds of a round are those between two records of the history as a user gets them; the first round
is left out. CPU seconds are the means of all rounds, those of the director and those of all envoys together. Memory is
the director's resident set, and the largest so far; files are those it has open between rounds.

In a secure round each envoy does what a real one does: it signs, checks, shares and masks, in a thread of its own. All
of them share this process and its lock, where real ones have a machine each: then the CPU seconds of the envoys are to
be divided by their number, and the seconds of a round are for the most part theirs.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from grpc import aio
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, director_pb2, director_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.envoy.secure_updates import SecureUpdates, Unmaskings
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.node.compatibility import describe_environment
from openfl_audio.privacy.transcript import CertificateIdentity
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.bundle import Author, Bundle, ModelDescription, fingerprint
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.codec import decode_answer, encode
from openfl_audio.protocol.messages import (
    AttendRequest,
    Credit,
    HistoryRequest,
    ModelRequest,
    SecureAnswer,
    SecureRequest,
    TaskResult,
    UpdateMessage,
)
from openfl_audio.protocol.plan import (
    ARCHIVE,
    EXPERIMENT_PLAN,
    INITIAL_MODEL,
    PLAN_FILE,
    BestModel,
    ExperimentPlan,
    Task,
)
from openfl_audio.protocol.record import Record
from openfl_audio.protocol.secure_aggregation import LEAST_UPDATES, SecureAggregation
from openfl_audio.protocol.tensors import Header, Tensors, receive, stream, write_tensors
from openfl_audio.protocol.wire import CHANNEL_OPTIONS, SERVICE, channel_credentials

USER = "scientist"
EXPERIMENT = "load"
FEDERATION = "load-uuid"
# OpenFL's plan, as far as the hash of a submission reads it.
OPENFL_PLAN = b"{experiment: {settings: {}}, aggregator: {settings: {}}, network: {settings: {}}}"
# Sends the update of a round.
Send = Callable[[int, dict[str, TaskResult], Tensors], Coroutine[Any, Any, None]]
# Envoys register a few at a time, as they would over the minutes of a morning.
REGISTER_AT_ONCE = 16
# The longest that a round, or the registration of all envoys, may take.
GIVE_UP_SECONDS = 300.0
# An envoy's connection is its own also where many envoys are one process.
OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


class LoadError(RuntimeError):
    """There is nothing to report; the message says why."""


class Line:
    """A connection to the director under the name `name`, with TLS if there are certificates."""

    def __init__(self, port: int, certificates: Path | None, name: str, **headers: str) -> None:
        self.name = name
        self._headers = tuple(headers.items())
        address = f"127.0.0.1:{port}"
        if certificates is None:
            self._channel = aio.insecure_channel(address, OPTIONS)
        else:
            credentials = channel_credentials(load_credentials(certificates, name))
            self._channel = aio.secure_channel(address, credentials, OPTIONS)
        self._director = director_pb2_grpc.DirectorStub(self._channel)
        self._aggregator = aggregator_pb2_grpc.AggregatorStub(self._channel)

    async def connect(self) -> None:
        """Wait until the connection is there."""
        await self._channel.channel_ready()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def register(self) -> aio.UnaryStreamCall:
        """Register as an envoy; it is online for as long as the returned call is open."""
        info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name=self.name), shard_description="none")
        request = director_pb2.UpdateShardInfoRequest(shard_info=info)
        await self._director.UpdateShardInfo(request, metadata=self._headers, wait_for_ready=True)
        attending = self._unary_stream("Attend", encode(AttendRequest(envoy=self.name, instance=self.name)))
        await attending.read()
        return attending

    async def serve(self, send: Send | None = None) -> None:
        """Do what the experiment asks of an envoy until it has ended; `send` sends updates otherwise than plainly."""
        header = aggregator_pb2.MessageHeader(sender=self.name, federation_uuid=FEDERATION)
        model = encode(ModelRequest(experiment=EXPERIMENT, envoy=self.name))
        while True:
            answer = await self._aggregator.GetTasks(aggregator_pb2.GetTasksRequest(header=header))
            if answer.quit:
                return
            if answer.tasks:
                pieces = [piece async for piece in self._unary_stream("GetModel", model)]
                tensors, _ = receive(pieces)
                results = {task.name: TaskResult(size=1, metrics={"loss": 0.5}) for task in answer.tasks}
                await (send or self._send_update)(answer.round_number, results, tensors)

    def in_secret(self, plan: ExperimentPlan, certificates: Path, pool: ThreadPoolExecutor) -> Send:
        """Return what sends updates in secret, from threads of `pool`."""
        loop, identity = asyncio.get_running_loop(), CertificateIdentity(load_credentials(certificates, self.name))

        def wait(work: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(GIVE_UP_SECONDS)

        def ask(request: SecureRequest) -> SecureAnswer:
            return decode_answer(wait(self._unary("SecureStage", encode(request))), SecureAnswer)

        def upload(header: Header, chunks: Callable[[], Iterator[bytes]]) -> None:
            wait(self._send("SendUpdate", header.pack(), b"".join(chunks())))

        bundle = Bundle(
            sha256=fingerprint({PLAN_FILE: OPENFL_PLAN}),
            plan=plan,
            model=ModelDescription(sha256="", tensors={}),
            author=Author(user=USER),
        )
        unmaskings = Unmaskings(Record(certificates / f"{self.name}.jsonl", f"envoy '{self.name}'"))
        updates = SecureUpdates(self.name, bundle, False, lambda: identity, unmaskings, ask, upload)

        async def send(round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
            updates.keep_model(tensors)
            await loop.run_in_executor(pool, updates.send, round_number, results, tensors)

        return send

    async def submit(self, submission: bytes) -> None:
        """Submit an experiment: the archive that a notebook sends."""
        await self._send("Submit", b"", submission)

    async def history(self) -> AsyncIterator[dict]:
        """Yield the records of the experiment as its rounds end, and how it ended."""
        async for message in self._unary_stream("GetHistory", encode(HistoryRequest(experiment=EXPERIMENT))):
            yield json.loads(message)

    async def _send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
        update = UpdateMessage(experiment=EXPERIMENT, envoy=self.name, round=round_number, results=results)
        header, *pieces = stream(tensors, update.model_dump())
        await self._send("SendUpdate", header, b"".join(pieces))

    async def _unary(self, call: str, request: bytes) -> bytes:
        return await self._channel.unary_unary(f"/{SERVICE}/{call}")(request, metadata=self._headers)

    def _unary_stream(self, call: str, request: bytes) -> aio.UnaryStreamCall:
        return self._channel.unary_stream(f"/{SERVICE}/{call}")(request, metadata=self._headers)

    async def _send(self, call: str, at_once: bytes, data: bytes) -> None:
        """Send chunks as `protocol.wire.send_chunks` does: one at once, the others as credit is granted."""
        sending = self._channel.stream_stream(f"/{SERVICE}/{call}")(metadata=self._headers)
        if at_once:
            await sending.write(at_once)
        while data and (answer := await sending.read()) is not aio.EOF:
            credit = decode_answer(answer, Credit)
            for _ in range(credit.chunks):
                chunk, data = data[: credit.chunk_bytes], data[credit.chunk_bytes :]
                if chunk:
                    await sending.write(chunk)
        await sending.done_writing()
        while await sending.read() is not aio.EOF:
            continue


def plan_of(rounds: int, **changes: Any) -> ExperimentPlan:
    """Return a plan of `rounds` rounds of training on all envoys, or with what is changed."""
    task = Task(name="train", function_name="train", task_type="train")
    best = BestModel(metric="loss", direction="min")
    return ExperimentPlan(
        name=EXPERIMENT, federation_uuid=FEDERATION, rounds=rounds, tasks=[task], best=best, **changes
    )


def submission_of(plan: ExperimentPlan, floats: int, folder: Path) -> bytes:
    """Return what a notebook would submit to train a model of `floats` numbers."""
    model = folder / INITIAL_MODEL
    write_tensors(model, {"weight": np.zeros(floats, np.float32)}, {})
    workspace, submission = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(workspace, "w") as zipped:
        zipped.writestr(PLAN_FILE, OPENFL_PLAN)
    with zipfile.ZipFile(submission, "w") as zipped:
        zipped.writestr(EXPERIMENT_PLAN, plan.model_dump_json())
        zipped.writestr(ARCHIVE, workspace.getvalue())
        zipped.write(model, INITIAL_MODEL)
    return submission.getvalue()


async def run(envoys: int, rounds: int, floats: int, tls: bool, folder: Path, secure: bool = False) -> dict:
    """Run `rounds` rounds after the first one with so many envoys, which `secure` hides. Raises LoadError."""
    names = [f"envoy-{number}" for number in range(envoys)]
    settings = {"envoys": names, "secure_aggregation": SecureAggregation(largest_weight=1)} if secure else {}
    plan = plan_of(rounds + 1, **settings)
    certificates = None
    if tls:
        certificates = folder / "certificates"
        write_certificates(certificates, director_hosts=["127.0.0.1"], envoys=names, users=[USER])
    with LocalFederation(folder, certificates, USER) as processes:
        processes.start_director()
        director = psutil.Process(processes.pid("director"))
        async with contextlib.AsyncExitStack() as stack:
            about = {"corpus": "none", "versions": json.dumps(describe_environment())}
            lines = [Line(processes.port, certificates, name, instance=name, **about) for name in names]
            user = Line(processes.port, certificates, USER, client_id=USER)
            for line in (*lines, user):
                stack.push_async_callback(line.close)
            await asyncio.wait_for(user.connect(), GIVE_UP_SECONDS)
            began = time.monotonic()
            attending = await _register_all(lines)
            registered = time.monotonic() - began
            sends: list[Send | None] = [None] * envoys
            if certificates and secure:
                pool = stack.enter_context(ThreadPoolExecutor(envoys))
                sends = [line.in_secret(plan, certificates, pool) for line in lines]
            await user.submit(submission_of(plan, floats, folder))
            cpu = _cpu_seconds(director), _cpu_seconds(psutil.Process())
            serving = asyncio.gather(*(line.serve(send) for line, send in zip(lines, sends, strict=True)))
            try:
                seconds, files = await _follow(user, plan, director, serving)
                cpu = _cpu_seconds(director) - cpu[0], _cpu_seconds(psutil.Process()) - cpu[1]
            finally:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                    await serving
                for call in attending:
                    call.cancel()
            memory = director.memory_info().rss, _peak_of(director.pid)
    return {
        "envoys": envoys,
        "tls": tls,
        "secure": secure,
        "floats": floats,
        "rounds": rounds,
        "register_seconds": round(registered, 2),
        "seconds_per_round": {
            "median": round(statistics.median(seconds), 3),
            "p90": round(float(np.quantile(seconds, 0.9)), 3),
        },
        "cpu_seconds_per_round": {
            "director": round(cpu[0] / (rounds + 1), 3),
            "envoys": round(cpu[1] / (rounds + 1), 3),
        },
        "director_rss_mb": {"last": round(memory[0] / 1e6), "peak": round(memory[1] / 1e6)},
        "director_open_files": files,
    }


async def _register_all(lines: Sequence[Line]) -> list[aio.UnaryStreamCall]:
    few = asyncio.Semaphore(REGISTER_AT_ONCE)

    async def register(line: Line) -> aio.UnaryStreamCall:
        async with few:
            return await line.register()

    try:
        return await asyncio.wait_for(asyncio.gather(*map(register, lines)), GIVE_UP_SECONDS)
    except asyncio.TimeoutError:
        raise LoadError(f"{len(lines)} envoys were not registered after {GIVE_UP_SECONDS:.0f} s") from None


async def _follow(
    user: Line, plan: ExperimentPlan, director: psutil.Process, serving: asyncio.Future
) -> tuple[list[float], int]:
    """Seconds of each round but the first, and the most open files. Raises LoadError."""
    times: list[float] = []
    files, history = 0, user.history()
    while True:
        following = asyncio.ensure_future(anext(history))
        done, _ = await asyncio.wait([following, serving], timeout=GIVE_UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if following not in done and serving.done() and not serving.exception():
            done, _ = await asyncio.wait([following], timeout=GIVE_UP_SECONDS)
        if following not in done:
            following.cancel()
            fault = serving.exception() if serving.done() else f"it takes more than {GIVE_UP_SECONDS:.0f} s"
            raise LoadError(f"round {len(times)} did not end: {fault}")
        record = following.result()
        if "status" in record:
            break
        if len(record["envoys"]) < 1 or record["refused"]:
            raise LoadError(f"round {record['round']} refused updates: {record['refused']}")
        if bool(record["secure"]) != (plan.secure_aggregation is not None):
            raise LoadError(f"round {record['round']} was otherwise secure than it should be")
        times.append(time.monotonic())
        files = max(files, director.num_fds())
    if len(times) != plan.rounds or record["status"] != "finished":
        raise LoadError(f"{len(times)} of {plan.rounds} rounds, then {record['status']}: {record['error']}")
    return [after - before for before, after in pairwise(times)], files


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _peak_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def run_all(options: argparse.Namespace) -> int:
    """Run each number of envoys that `options` have, print what was measured, and return the exit status."""
    results: list[dict[str, Any]] = []
    # In one event loop: what gRPC has in a process cannot be used from a second one.
    for envoys in options.envoys:
        for secure in (False, True) if options.secure else (False,):
            with tempfile.TemporaryDirectory(prefix="load-") as folder:
                try:
                    found = await run(envoys, options.rounds, options.floats, options.tls, Path(folder), secure)
                except (LoadError, grpc.RpcError) as error:
                    print(f"benchmarks/load.py: {envoys} envoys: {error}", file=sys.stderr)
                    return 1
            results.append(found)
            show(found, options.json)
    save(options, results)
    return 0


def show(found: dict[str, Any], as_json: bool) -> None:
    """Print what was measured: a JSON object, or a line of the table."""
    if as_json:
        print(json.dumps(found), flush=True)
    else:
        seconds, cpu, memory = found["seconds_per_round"], found["cpu_seconds_per_round"], found["director_rss_mb"]
        print(
            f"{found['envoys']:>7}{seconds['median']:>10.3f}{seconds['p90']:>8.3f}{cpu['director']:>16.3f}"
            f"{cpu['envoys']:>14.3f}{memory['last']:>6}{memory['peak']:>9}"
            f"{found['director_open_files']:>7}{found['register_seconds']:>12.2f}"
            f"{'  secure' if found['secure'] else ''}",
            flush=True,
        )


async def run_and_exit(options: argparse.Namespace) -> None:
    """Run all and end the process here: closing a loop that had hundreds of gRPC connections often waits for ever."""
    code = await run_all(options)
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Run the command; it ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--envoys", type=whole_number, nargs="+", default=[10, 50, 100, 250, 500], metavar="N",
        help="10 50 100 250 500 by default",
    )  # fmt: skip
    parser.add_argument("--rounds", type=whole_number, default=10, metavar="R", help="%(default)s by default")
    parser.add_argument("--floats", type=whole_number, default=10, metavar="F", help="of the model; %(default)s")
    parser.add_argument("--tls", action="store_true", help="mutual TLS")
    parser.add_argument("--secure", action="store_true", help="a plain and a secure run, with TLS")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    add_save(parser)
    options = parser.parse_args()
    if options.secure and min(options.envoys) < LEAST_UPDATES:
        parser.error(f"--secure takes {LEAST_UPDATES} envoys at least, and not {min(options.envoys)}")
    options.tls |= options.secure
    if not options.json:
        columns = f"{'director CPU s':>16}{'envoys CPU s':>14}{'MB':>6}{'peak MB':>9}{'files':>7}{'register s':>12}"
        print(f"{'envoys':>7}{'median s':>10}{'p90 s':>8}{columns}")
    asyncio.run(run_and_exit(options))


if __name__ == "__main__":
    main()
