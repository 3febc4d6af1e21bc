"""Thousands of requests that nobody should send, to every call: all are answered, and the director stays as it was."""

import contextlib
import json
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from openfl.protocols import aggregator_pb2, base_pb2, director_pb2, director_pb2_grpc

from openfl_audio.director.services.rounds import RoundsService
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.messages import (
    ApprovalReport,
    AttendRequest,
    DropRequest,
    ExperimentRequest,
    HeadRequest,
    LogRequest,
    ModelRequest,
    ProgressReport,
    SecureRequest,
    SignedHead,
    StatusRequest,
)
from openfl_audio.protocol.tensors import stream
from tests.integration.conftest import (
    ENVOYS,
    READY_SECONDS,
    USER,
    open_as,
    plan_of,
    points,
    status_of,
    submission_of,
    submit,
    wait_for,
)

pytestmark = pytest.mark.integration

SEED = 20
WARM_UP, THREADS = 1_000, 8
ANSWER_SECONDS = 15.0
# These wait for news by design, or tell of rounds to come: their callers give up.
LONG_POLLS = {"WaitExperiment", "Attend", "GetTasks", "GetHistory", "GetMetricStream"}
LONG_POLL_SECONDS = 0.1
# What is left for the interpreter's and the allocators' slack: gRPC's arenas for eight callers and Python's free lists
# differ by 10 to 20 MB between two moments of one director, while every request that stayed would hold a kilobyte or
# more of buffers and coroutines, and the larger ones (up to 300 kB here) hundreds of megabytes in all.
SLACK_BYTES = 30e6

NAME = "attacked"
# Of each round of requests to all calls another one: an envoy's first answer to a round is the last that is looked at.
ENVOY, N_ENVOYS = "fake-0000", 500
HEADER = aggregator_pb2.MessageHeader(sender=ENVOY, federation_uuid=f"uuid-{NAME}")
TENSOR = base_pb2.NamedTensor(name="weight", tags=["trained"], data_bytes=bytes(12))
RESULTS = aggregator_pb2.TaskResults(header=HEADER, round_number=0, task_name="train", data_size=1, tensors=[TENSOR])
UPDATE = {"experiment": NAME, "envoy": ENVOY, "round": 0, "results": {"train": {"size": 1, "metrics": {"loss": 0.5}}}}
SHARD = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name="noise"), sample_shape=["1"], target_shape=["1"])


def requests() -> dict[str, list[bytes]]:
    """A good request for every call, in pieces."""
    director, aggregator, rounds = (
        "/openfl.director.Director/",
        "/openfl.aggregator.Aggregator/",
        "/openfl_audio.Rounds/",
    )
    experiment = encode(ExperimentRequest(experiment=NAME))
    by_name = {"experiment_name": NAME, "collaborator_name": ENVOY}
    messages = {
        director + "UpdateShardInfo": director_pb2.UpdateShardInfoRequest(shard_info=SHARD),
        director + "WaitExperiment": director_pb2.WaitExperimentRequest(collaborator_name=ENVOY),
        director + "GetExperimentData": director_pb2.GetExperimentDataRequest(**by_name),
        director + "UpdateEnvoyStatus": director_pb2.UpdateEnvoyStatusRequest(name=ENVOY),
        director + "SetExperimentFailed": director_pb2.SetExperimentFailedRequest(
            experiment_name=NAME, collaborator_name="nobody", error_description="x" * 100
        ),
        director + "GetExperimentDescription": director_pb2.GetExperimentDescriptionRequest(name=NAME),
        director + "GetExperimentsList": director_pb2.GetExperimentsListRequest(),
        director + "SetNewExperiment": director_pb2.ExperimentInfo(name="of-noise"),
        director + "GetExperimentStatus": director_pb2.GetExperimentStatusRequest(experiment_name=NAME),
        director + "GetDatasetInfo": director_pb2.GetDatasetInfoRequest(),
        director + "GetTrainedModel": director_pb2.GetTrainedModelRequest(experiment_name=NAME),
        director + "GetMetricStream": director_pb2.GetMetricStreamRequest(experiment_name=NAME),
        director + "RemoveExperimentData": director_pb2.RemoveExperimentRequest(experiment_name=NAME),
        director + "GetEnvoys": director_pb2.GetEnvoysRequest(),
        aggregator + "GetTasks": aggregator_pb2.GetTasksRequest(header=HEADER),
        aggregator + "GetAggregatedTensor": aggregator_pb2.GetAggregatedTensorRequest(
            header=HEADER, tensor_name="weight", round_number=0, tags=["model"]
        ),
        aggregator + "SendLocalTaskResults": base_pb2.DataStream(npbytes=RESULTS.SerializeToString()),
        aggregator + "GetMetricStream": aggregator_pb2.GetMetricStreamRequest(experiment_name=NAME),
        aggregator + "GetTrainedModel": aggregator_pb2.GetTrainedModelRequest(experiment_name=NAME),
        aggregator + "GetExperimentDescription": aggregator_pb2.GetExperimentDescriptionRequest(name=NAME),
    }
    return {path: [message.SerializeToString()] for path, message in messages.items()} | {
        rounds + "Attend": [encode(AttendRequest(envoy="noise", instance="noise"))],
        rounds + "GetModel": [encode(ModelRequest(experiment=NAME, envoy=ENVOY))],
        rounds + "ReportProgress": [
            encode(
                ProgressReport(experiment=NAME, envoy=ENVOY, round=0, task="train", seconds=1.0, values={"loss": 0.5})
            )
        ],
        rounds + "SecureStage": [encode(SecureRequest(experiment=NAME, envoy=ENVOY, round=0, attempt=0, stage=-1))],
        rounds + "ReportApproval": [encode(ApprovalReport(experiment=NAME, envoy=ENVOY, waits=False))],
        rounds + "ExchangeHeads": [encode(HeadRequest(envoy=ENVOY, head=SignedHead(number=3, sha256="0" * 64)))],
        rounds + "SendUpdate": list(stream({"weight": np.ones(3, np.float32)}, UPDATE)),
        rounds + "Submit": [submission_of(plan_of("of-noise", envoys=["nobody"]))],
        rounds + "GetHistory": [experiment],
        rounds + "GetExperiment": [experiment],
        # Nobody's: the experiment must still be there for the next request.
        rounds + "StopExperiment": [encode(ExperimentRequest(experiment="of-nobody"))],
        rounds + "ResumeExperiment": [encode(ExperimentRequest(experiment="of-nobody"))],
        rounds + "DeleteExperiment": [encode(ExperimentRequest(experiment="of-nobody"))],
        rounds + "DropEnvoy": [encode(DropRequest(experiment="of-nobody", envoy=ENVOY))],
        rounds + "GetLog": [encode(LogRequest(experiment=NAME, envoy=ENVOY))],
        rounds + "GetStatus": [encode(StatusRequest())],
    }


def kinds() -> dict[str, str]:
    """Every call of a director, as the name of the channel's method that makes it."""
    streams = {}
    for module in (director_pb2, aggregator_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                streams[f"/{service.full_name}/{method.name}"] = method.client_streaming, method.server_streaming
    for path, handler in RoundsService(None, None, lambda: None).handler()._method_handlers.items():
        streams[path] = handler.request_streaming, handler.response_streaming
    word = {False: "unary", True: "stream"}
    return {path: f"{word[up]}_{word[down]}" for path, (up, down) in streams.items()}


GOOD, KINDS = requests(), kinds()


def is_packed(data: bytes) -> bool:
    """Is it the piece of an update that is compressed?"""
    return data[:1] == b"x"


def as_envoy(data: bytes, envoy: str) -> bytes:
    """The same request of another envoy, whose name is as long."""
    if is_packed(data):
        return zlib.compress(zlib.decompress(data).replace(ENVOY.encode(), envoy.encode()))
    return data.replace(ENVOY.encode(), envoy.encode())


class Mutator:
    """Makes requests that are almost good, or not at all."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def mutate(self, path: str, envoy: str) -> list[bytes]:
        ways = [self.flip, self.cut, self.repeat, self.insert, self.noise]
        if path.startswith("/openfl_audio.Rounds/"):
            ways += [self.json, self.json]
        pieces = [as_envoy(piece, envoy) for piece in GOOD[path]]
        if path.endswith("/SendUpdate"):
            ways += [self.header, self.header, self.header]
        if path.endswith("/Submit") and self.chance.random() < 0.5:
            return [self.submission()]
        at = self.chance.randrange(len(pieces))
        changed = [*pieces[:at], self.chance.choice(ways)(pieces[at]), *pieces[at + 1 :]]
        if KINDS[path].startswith("stream") and self.chance.random() < 0.5:
            changed = self.shuffle(changed)
        if path.endswith(("/StopExperiment", "/DropEnvoy")):
            # Anybody may be the owner without TLS, and the experiment is still needed.
            changed = [piece.replace(NAME.encode(), b"another") for piece in changed]
        return changed

    def flip(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(min(len(data), self.chance.choice((1, 1, 2, 8)))):
            changed[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def cut(self, data: bytes) -> bytes:
        return data[: self.chance.randrange(len(data) + 1)]

    def repeat(self, data: bytes) -> bytes:
        return data * self.chance.choice((2, 3, 100))

    def insert(self, data: bytes) -> bytes:
        at = self.chance.randrange(len(data) + 1)
        return data[:at] + self.chance.randbytes(self.chance.choice((1, 4, 1000))) + data[at:]

    def noise(self, _: bytes) -> bytes:
        return self.chance.randbytes(self.chance.choice((0, 1, 8, 100, 300_000)))

    def json(self, _: bytes) -> bytes:
        keys = ["experiment", "envoy", "which", "instance", "round", "results"]
        content = {key: self.value() for key in self.chance.sample(keys, self.chance.randrange(4))}
        return json.dumps(content).encode()

    def value(self):
        chance = self.chance
        nested: object = chance.choice(([], {}, "x", 1))
        for _ in range(chance.choice((1, 10, 190, 210))):
            nested = [nested] if chance.random() < 0.5 else {"a": nested}
        return chance.choice(
            (
                NAME,
                ENVOY,
                "../../x",
                "\ud800",
                "a\0b",
                "x" * 100_000,
                "line\nbreak",
                "",
                None,
                True,
                -1,
                0,
                10**400,
                0.5,
                float("nan"),
                float("-inf"),
                [1, "a", None],
                nested,
                {"train": {"size": chance.choice((-1, 1, 10**18, "1", None)), "metrics": {"\ud800": 1e308}}},
            )
        )

    def header(self, data: bytes) -> bytes:
        """A header of safetensors with faults, packed as it should be."""
        if not is_packed(data):
            return self.flip(data)
        chance = self.chance
        text = zlib.decompress(data)[8:]
        content = json.loads(text)
        name = chance.choice(("weight", "\ud800", "x" * 100_000, "__metadata__", "a\nb"))
        key = chance.choice(("dtype", "shape", "data_offsets", "more"))
        fault = chance.randrange(6)
        if fault == 0:
            content[name] = self.value()
        elif fault == 1:
            content["weight"][key] = self.value()
        elif fault == 2:
            content[name] = content["weight"] | {key: chance.choice(([-1], [10**30], [0], [0, 0], [2, 6], "F64", [[]]))}
        elif fault == 3:
            metadata = json.loads(content["__metadata__"]["openfl_audio"]) | {chance.choice(list(UPDATE)): self.value()}
            content["__metadata__"] = {"openfl_audio": chance.choice((json.dumps(metadata), self.value()))}
        elif fault == 4:
            depth = chance.randrange(900, 1000)  # around Python's limit
            content["__metadata__"] = {"openfl_audio": '{"a":' + "[" * depth + "]" * depth + "}"}
        text = json.dumps(content).encode() if fault < 5 else b"[" * 100_000
        packed = zlib.compress(len(text).to_bytes(8, "little") + text)
        return packed if chance.random() < 0.9 else self.flip(packed)

    def submission(self) -> bytes:
        """A whole submission in which something is wrong."""
        way = self.chance.choice((self.flip, self.cut, self.insert))
        fault = self.chance.choice(("rounds", "tasks", "best", "name", "envoys", "participation", "more"))
        plan = json.dumps(plan_of("of-noise") | {fault: self.value()}).encode()
        zipped = submission_of(plan if self.chance.random() < 0.5 else way(plan))
        return zipped if self.chance.random() < 0.5 else way(zipped)

    def shuffle(self, pieces: list[bytes]) -> list[bytes]:
        pieces = [*pieces, *(self.noise(b"") for _ in range(self.chance.randrange(3)))]
        self.chance.shuffle(pieces)
        return pieces


@dataclass
class Storm:
    """The outcome of many requests."""

    codes: Counter = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, channel: grpc.Channel, path: str, pieces: list[bytes]) -> None:
        name = path.rpartition("/")[2]
        waits = name in LONG_POLLS
        make = getattr(channel, KINDS[path])(path)
        request: bytes | Iterator[bytes] = iter(pieces) if KINDS[path].startswith("stream") else pieces[0]
        code, details = grpc.StatusCode.OK, ""
        try:
            answer = make(request, timeout=LONG_POLL_SECONDS if waits else ANSWER_SECONDS)
            if KINDS[path].endswith("stream"):
                for _ in answer:
                    continue
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        with self.lock:
            self.codes[code.name] += 1
            if code is grpc.StatusCode.DEADLINE_EXCEEDED and not waits:
                self.unanswered.append(f"{path} {pieces[0][:100]!r}")
            if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
                self.unexplained.append(f"{path}: {code.name} {details[:200]}")


def rain(processes: LocalFederation, first: int, last: int) -> Storm:
    """Requests number `first` to `last`, to all calls in turn, from several threads."""
    storm = Storm()

    def shower(number: int) -> None:
        mutator = Mutator(random.Random(f"{SEED} {first} {number}"))
        with open_as(processes, USER, client_id=USER) as channel:
            for at in range(first + number, last, THREADS):
                path = list(GOOD)[at % len(GOOD)]
                storm.send(channel, path, mutator.mutate(path, envoy_name(at // len(GOOD))))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(shower, range(THREADS)))
    return storm


def envoy_name(number: int) -> str:
    return f"fake-{number:04}"


def register(channel: grpc.Channel, name: str) -> None:
    info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name=name))
    stub = director_pb2_grpc.DirectorStub(channel)
    stub.UpdateShardInfo(director_pb2.UpdateShardInfoRequest(shard_info=info), timeout=60)


@dataclass
class Outcome:
    sent: int
    storm: Storm
    bytes_before: int
    bytes_after: int
    attacked: dict[str, Any]
    log: str
    slopes: list[float]


@pytest.fixture(scope="module", params=[2_500, pytest.param(10_000, marks=pytest.mark.slow)])
def outcome(request, tmp_path_factory, toy_run) -> Iterator[Outcome]:
    """A storm on a director without TLS, where every claim is believed, with an experiment that can be reached."""
    with LocalFederation(tmp_path_factory.mktemp("random"), None, USER) as processes:
        processes.start_director()
        with open_as(processes, USER, client_id=USER) as channel:
            grpc.channel_ready_future(channel).result(READY_SECONDS)
            names = [envoy_name(number) for number in range(N_ENVOYS)]
            for name in names:
                register(channel, name)
            submit(channel, submission_of(plan_of(NAME, envoys=names)))
            rain(processes, 0, WARM_UP)
            before = resident_bytes(processes)
            started = time.monotonic()
            storm = rain(processes, WARM_UP, WARM_UP + request.param)
            print(f"{request.param} requests in {time.monotonic() - started:.0f} s: {dict(storm.codes)}")
            # Calls that were given up end a moment later.
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: resident_bytes(processes) < before + SLACK_BYTES, 30)
            after = resident_bytes(processes)
            (attacked,) = (each for each in status_of(processes)["experiments"] if each["name"] == NAME)
        assert processes.is_alive("director")
        for name, n_points in ENVOYS.items():
            processes.start_envoy(name, points(n_points))
        processes.wait_until_ready(ENVOYS, READY_SECONDS)
        slopes = toy_run(processes)
        log = processes.log("director").read_text(errors="replace")
        yield Outcome(request.param, storm, before, after, attacked, log, slopes)


@pytest.fixture(scope="module")
def toy_run() -> Callable:
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import Federation, FLExperiment

    def run(processes: LocalFederation) -> list[float]:
        federation = Federation(USER, "127.0.0.1", processes.port, tls=False)
        experiment = FLExperiment(federation, "after-the-storm", workspace=toy)
        experiment.start(
            model_provider=model_interface(),
            task_keeper=task_interface(),
            data_loader=PointsData(),
            rounds_to_train=2,
            envoys=list(ENVOYS),
        )
        return experiment.watch()["slope"].tolist()

    return run


def resident_bytes(processes: LocalFederation) -> int:
    return psutil.Process(processes.pid("director")).memory_info().rss


def test_every_call_of_every_service_gets_requests():
    assert GOOD.keys() == KINDS.keys()


def test_every_request_is_answered(outcome):
    assert outcome.storm.codes.total() == outcome.sent
    assert outcome.storm.unanswered == []


def test_requests_are_refused_in_words_and_no_fault_of_the_director_shows(outcome):
    # All calls of one fault are one line.
    same = re.compile(r"^\S+: |with type '\S+'|\d+")
    counted = Counter(same.sub("", line) for line in outcome.storm.unexplained)
    assert not counted, "\n".join(f"{count} x {line}" for line, count in counted.most_common(20))


def test_many_kinds_of_answers_came(outcome):
    """Otherwise the requests would all fail at the first check, and try nothing behind it."""
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"} <= outcome.storm.codes.keys()
    assert outcome.storm.codes["OK"] > outcome.sent / 50


def test_the_experiment_that_was_attacked_goes_on(outcome):
    """It also shows that there was something to reach all the time."""
    assert (outcome.attacked["status"], outcome.attacked["round"]) == ("in_progress", 0)
    assert 0 < len(outcome.attacked["waiting_for"]) < N_ENVOYS


def test_the_directors_log_has_no_traceback_and_no_error(outcome):
    same = re.compile(r"method \S+|with type '\S+'|\d+")
    counted = Counter(same.sub("", fault[:200]) for fault in faults_in(outcome.log))
    assert not counted, "\n".join(f"{count} x {fault}" for fault, count in counted.most_common(20))


def faults_in(log: str) -> Iterator[str]:
    """Errors of the log, and what its tracebacks end with. That an envoy failed is no fault of the director."""
    lines = iter(log.splitlines())
    for line in lines:
        if re.match(r"\S+ \S+ ERROR (?!experiment '[^']*' is failed: envoy)", line):
            yield line.partition(" ERROR ")[2]
        if line.startswith("Traceback"):
            yield next((last for last in lines if not last.startswith(" ")), "Traceback")


def test_memory_is_back_where_it_was(outcome):
    grown = outcome.bytes_after - outcome.bytes_before
    assert grown < SLACK_BYTES, f"{outcome.bytes_before / 1e6:.0f} MB before, {outcome.bytes_after / 1e6:.0f} MB after"


def test_an_experiment_runs_normally_afterwards(outcome):
    assert outcome.slopes == [0, 2.5, 5]
