"""Rights of callers: nobody speaks for another envoy, no envoy for a notebook, no notebook for an envoy."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from openfl.protocols import aggregator_pb2, base_pb2, director_pb2

from openfl_audio.director.services.rounds import HEADS_PACE_SECONDS, RoundsService
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import create_authority, issue, load_authority
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.heads import sign_head
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
from openfl_audio.protocol.record import Head
from openfl_audio.protocol.tensors import Entry, Header, stream
from tests.integration.conftest import (
    MONITOR,
    OPERATOR,
    READY_SECONDS,
    USER,
    FakeEnvoy,
    grows_by_less_than,
    listing,
    open_as,
    plan_of,
    points,
    status_of,
    submission_of,
    submit,
    wait_for,
)

pytestmark = pytest.mark.integration

EXPERIMENT = "of-b"
HEADER = aggregator_pb2.MessageHeader(sender="b", federation_uuid=f"uuid-{EXPERIMENT}")
NODE_B = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name="b"))
RESULTS = aggregator_pb2.TaskResults(header=HEADER, round_number=0, task_name="train", data_size=1)
UPDATE = {
    "experiment": EXPERIMENT,
    "envoy": "b",
    "round": 0,
    "results": {"train": {"size": 1, "metrics": {}}},
}

DIRECTOR, AGGREGATOR, ROUNDS = "/openfl.director.Director/", "/openfl.aggregator.Aggregator/", "/openfl_audio.Rounds/"
# Each call as envoy 'b' would make it: what it sends, in pieces.
CALLS_OF_ENVOYS: dict[str, list[bytes | Message]] = {
    DIRECTOR + "UpdateShardInfo": [director_pb2.UpdateShardInfoRequest(shard_info=NODE_B)],
    DIRECTOR + "WaitExperiment": [director_pb2.WaitExperimentRequest(collaborator_name="b")],
    DIRECTOR + "GetExperimentData": [
        director_pb2.GetExperimentDataRequest(experiment_name=EXPERIMENT, collaborator_name="b")
    ],
    DIRECTOR + "UpdateEnvoyStatus": [director_pb2.UpdateEnvoyStatusRequest(name="b")],
    DIRECTOR + "SetExperimentFailed": [
        director_pb2.SetExperimentFailedRequest(experiment_name=EXPERIMENT, collaborator_name="b", error_code=1)
    ],
    AGGREGATOR + "GetTasks": [aggregator_pb2.GetTasksRequest(header=HEADER)],
    AGGREGATOR + "GetAggregatedTensor": [
        aggregator_pb2.GetAggregatedTensorRequest(header=HEADER, tensor_name="weight", round_number=0)
    ],
    AGGREGATOR + "SendLocalTaskResults": [base_pb2.DataStream(npbytes=RESULTS.SerializeToString())],
    ROUNDS + "Attend": [encode(AttendRequest(envoy="b", instance="fake-b"))],
    ROUNDS + "GetModel": [encode(ModelRequest(experiment=EXPERIMENT, envoy="b"))],
    ROUNDS + "ReportProgress": [
        encode(ProgressReport(experiment=EXPERIMENT, envoy="b", round=0, task="train", seconds=1.0))
    ],
    ROUNDS + "SecureStage": [encode(SecureRequest(experiment=EXPERIMENT, envoy="b", round=0, attempt=0, stage=-1))],
    ROUNDS + "ReportApproval": [encode(ApprovalReport(experiment=EXPERIMENT, envoy="b", waits=True))],
    ROUNDS + "ExchangeHeads": [encode(HeadRequest(envoy="b", head=SignedHead(number=0, sha256="0" * 64)))],
    ROUNDS + "SendUpdate": list(stream({"weight": np.ones(3, np.float32)}, UPDATE)),
}
# Each call as the experiment's owner would make it.
CALLS_OF_NOTEBOOKS: dict[str, list[bytes | Message]] = {
    ROUNDS + "Submit": [submission_of(plan_of("new"))],
    DIRECTOR + "GetExperimentStatus": [director_pb2.GetExperimentStatusRequest(experiment_name=EXPERIMENT)],
    DIRECTOR + "GetDatasetInfo": [director_pb2.GetDatasetInfoRequest()],
    DIRECTOR + "GetMetricStream": [director_pb2.GetMetricStreamRequest(experiment_name=EXPERIMENT)],
    DIRECTOR + "GetEnvoys": [director_pb2.GetEnvoysRequest()],
    ROUNDS + "GetModel": [encode(ModelRequest(experiment=EXPERIMENT, which="initial"))],
    ROUNDS + "GetHistory": [encode(ExperimentRequest(experiment=EXPERIMENT))],
    ROUNDS + "GetExperiment": [encode(ExperimentRequest(experiment=EXPERIMENT))],
    ROUNDS + "StopExperiment": [encode(ExperimentRequest(experiment=EXPERIMENT))],
    ROUNDS + "ResumeExperiment": [encode(ExperimentRequest(experiment=EXPERIMENT))],
    ROUNDS + "DeleteExperiment": [encode(ExperimentRequest(experiment=EXPERIMENT))],
    ROUNDS + "DropEnvoy": [encode(DropRequest(experiment=EXPERIMENT, envoy="b"))],
    ROUNDS + "GetLog": [encode(LogRequest(experiment=EXPERIMENT, envoy="b"))],
    ROUNDS + "GetStatus": [encode(StatusRequest())],
}
STATE = ("GetExperimentStatus", "GetEnvoys", "GetExperiment", "GetStatus", "GetDatasetInfo")
# What a role may not do of what users may.
FORBIDDEN = {
    OPERATOR: ("Submit", "ResumeExperiment", "GetLog"),
    MONITOR: ("Submit", "GetLog", "GetModel", "StopExperiment", "ResumeExperiment", "DeleteExperiment", "DropEnvoy"),
}
NOT_SERVED: dict[str, list[bytes | Message]] = {
    DIRECTOR + "SetNewExperiment": [director_pb2.ExperimentInfo(name="new")],
    DIRECTOR + "GetExperimentDescription": [director_pb2.GetExperimentDescriptionRequest(name=EXPERIMENT)],
    DIRECTOR + "GetExperimentsList": [director_pb2.GetExperimentsListRequest()],
    DIRECTOR + "GetTrainedModel": [director_pb2.GetTrainedModelRequest(experiment_name=EXPERIMENT)],
    DIRECTOR + "RemoveExperimentData": [director_pb2.RemoveExperimentRequest(experiment_name=EXPERIMENT)],
    AGGREGATOR + "GetMetricStream": [aggregator_pb2.GetMetricStreamRequest(experiment_name=EXPERIMENT)],
    AGGREGATOR + "GetTrainedModel": [aggregator_pb2.GetTrainedModelRequest(experiment_name=EXPERIMENT)],
    AGGREGATOR + "GetExperimentDescription": [aggregator_pb2.GetExperimentDescriptionRequest(name=EXPERIMENT)],
}


def all_methods() -> dict[str, tuple[bool, bool]]:
    """Every call that a director has, and whether its requests and its answers are streams."""
    methods = {}
    for module in (director_pb2, aggregator_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                methods[f"/{service.full_name}/{method.name}"] = method.client_streaming, method.server_streaming
    for path, handler in RoundsService(None, None, lambda: None).handler()._method_handlers.items():
        methods[path] = handler.request_streaming, handler.response_streaming
    return methods


METHODS = all_methods()


def call(channel: grpc.Channel, path: str, requests: list[bytes | Message]) -> None:
    """Make the call and take all its answers. Raises grpc.RpcError."""
    pieces = [each if isinstance(each, bytes) else each.SerializeToString() for each in requests]
    streams_requests, streams_answers = METHODS[path]
    kind = f"{'stream' if streams_requests else 'unary'}_{'stream' if streams_answers else 'unary'}"
    answer = getattr(channel, kind)(path)(iter(pieces) if streams_requests else pieces[0], timeout=60)
    if streams_answers:
        for _ in answer:
            continue


@pytest.fixture(scope="module")
def director(tmp_path_factory, certificates) -> Iterator[LocalFederation]:
    """A director with an experiment in progress that waits for its envoy 'b'."""
    with LocalFederation(tmp_path_factory.mktemp("identities"), certificates, USER) as processes:
        processes.start_director()
        wait_for(lambda: is_up(processes))
        with FakeEnvoy(processes, "b"), open_as(processes, USER) as channel:
            submit(channel, submission_of(plan_of(EXPERIMENT)))
            yield processes


def is_up(processes: LocalFederation) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bool(status_of(processes))
    return False


@pytest.fixture
def unchanged(director) -> Iterator[None]:
    """Nothing that the director says or keeps is different afterwards, and its log has no traceback."""
    before, log = state_of(director), director.log("director")
    logged = len(log.read_text())
    assert [(e["status"], e["waiting_for"]) for e in before[0]["experiments"]] == [("in_progress", ["b"])]
    yield
    assert state_of(director) == before
    assert "Traceback" not in log.read_text()[logged:]


def state_of(director: LocalFederation) -> tuple[dict[str, Any], dict[str, str]]:
    return status_of(director), listing(director.folder / "director")


def refusal(make_call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        make_call()
    return caught.value


def test_every_call_of_every_service_is_tried_here():
    assert CALLS_OF_ENVOYS.keys() | CALLS_OF_NOTEBOOKS.keys() | NOT_SERVED.keys() == METHODS.keys()


def test_the_calls_are_good_ones_when_the_right_certificate_makes_them(director, unchanged):
    """Otherwise their refusals below would say nothing. Only calls that change nothing."""
    for name, table, harmless in (
        ("b", CALLS_OF_ENVOYS, ("GetTasks", "GetExperimentData", "GetAggregatedTensor", "GetModel", "WaitExperiment")),
        (USER, CALLS_OF_NOTEBOOKS, ("GetModel", *STATE)),
        (OPERATOR, CALLS_OF_NOTEBOOKS, ("GetModel", *STATE)),
        (MONITOR, CALLS_OF_NOTEBOOKS, STATE),
    ):
        with open_as(director, name) as channel:
            for path in table:
                if path.rpartition("/")[2] in harmless:
                    call(channel, path, table[path])


def refusal_of(role: str, name: str) -> str:
    said = "the call is made as envoy 'b'" if role == "envoy" else "this call is for envoys"
    return f"the certificate is that of {role} '{name}', {said}"


@pytest.mark.parametrize("path", CALLS_OF_ENVOYS)
@pytest.mark.parametrize(("name", "role"), [("a", "envoy"), (USER, "user")])
@pytest.mark.usefixtures("unchanged")
def test_nobody_calls_in_the_name_of_another_envoy(director, path, name, role):
    with open_as(director, name) as channel:
        error = refusal(lambda: call(channel, path, CALLS_OF_ENVOYS[path]))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == refusal_of(role, name)
    assert director.log("director").read_text().splitlines()[-1].endswith(error.details())


@pytest.mark.usefixtures("unchanged")
def test_nothing_is_unpacked_for_who_is_no_envoy(director):
    with open_as(director, USER) as channel:
        error = refusal(lambda: call(channel, ROUNDS + "SendUpdate", [b"no header"]))
    assert error.details() == f"the certificate is that of user '{USER}', this call is for envoys"


def header_of(n_tensors: int) -> bytes:
    entries = {str(n): Entry(np.dtype("<f4"), (1,), 4 * n) for n in range(n_tensors)}
    return Header(entries, UPDATE | {"experiment": "of-nobody"}).pack()


@pytest.mark.usefixtures("unchanged")
def test_others_are_answered_while_a_large_header_is_unpacked(director):
    answered = 0
    with open_as(director, "b") as envoy, open_as(director, USER) as notebook:
        answers = envoy.stream_stream(ROUNDS + "SendUpdate")(iter([header_of(100_000)]), timeout=60)
        while not answers.done():
            call(notebook, ROUNDS + "GetStatus", [encode(StatusRequest())])
            answered += 1
        error = refusal(lambda: list(answers))
    assert error.details() == "envoy 'b' has no experiment 'of-nobody'"
    assert answered > 3  # of a director that unpacks before it answers, one or two


def test_an_envoy_that_exchanges_heads_without_end_has_its_turns_and_no_more(director, certificates):
    own, n_calls = load_credentials(certificates, "a"), 60
    request = encode(HeadRequest(envoy="a", head=sign_head("envoy 'a'", Head(1, "0" * 64), own)))
    with open_as(director, "a") as channel:
        exchange = channel.unary_unary(ROUNDS + "ExchangeHeads")
        exchange(request, timeout=60)
        began = time.monotonic()
        for answer in [exchange.future(request, timeout=60) for _ in range(n_calls)]:
            answer.result()
        assert time.monotonic() - began >= (n_calls - 1) * HEADS_PACE_SECONDS


@pytest.mark.parametrize("path", CALLS_OF_NOTEBOOKS)
@pytest.mark.usefixtures("unchanged")
def test_no_envoy_makes_a_notebooks_call(director, path):
    with open_as(director, "b", client_id=USER) as channel:
        error = refusal(lambda: call(channel, path, CALLS_OF_NOTEBOOKS[path]))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details().startswith("the certificate is that of envoy 'b', this call is for ")
    assert "notebook users" in error.details()


@pytest.mark.parametrize(("role", "call_name"), [(role, name) for role in FORBIDDEN for name in FORBIDDEN[role]])
@pytest.mark.usefixtures("unchanged")
def test_operators_and_monitors_may_not_do_all_that_users_may(director, role, call_name):
    with open_as(director, role, client_id=USER) as channel:
        error = refusal(lambda: call(channel, ROUNDS + call_name, CALLS_OF_NOTEBOOKS[ROUNDS + call_name]))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details().startswith(f"the certificate is that of {role} '{role}', this call is for ")


@pytest.mark.usefixtures("unchanged")
def test_of_an_experiment_that_there_is_not_an_operator_hears_so(director):
    with open_as(director, OPERATOR) as channel:
        error = refusal(
            lambda: call(channel, ROUNDS + "StopExperiment", [encode(ExperimentRequest(experiment="nobodys"))])
        )
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "there is no experiment 'nobodys'")


@pytest.mark.usefixtures("unchanged")
def test_what_has_not_ended_is_neither_deleted_nor_resumed_nor_left_by_the_one_who_is_needed(director):
    sentences = {
        "DeleteExperiment": f"experiment '{EXPERIMENT}' is in_progress: stop it first",
        "ResumeExperiment": f"experiment '{EXPERIMENT}' is in_progress: there is nothing to resume",
        "DropEnvoy": f"experiment '{EXPERIMENT}' could not reach its quorum without envoy 'b': stop it instead",
    }
    with open_as(director, USER) as channel:
        for name, sentence in sentences.items():
            error = refusal(lambda name=name: call(channel, ROUNDS + name, CALLS_OF_NOTEBOOKS[ROUNDS + name]))
            assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, sentence)


@pytest.mark.parametrize("path", [path for path, call in CALLS_OF_NOTEBOOKS.items() if EXPERIMENT in str(call)])
@pytest.mark.usefixtures("unchanged")
def test_no_user_calls_for_the_experiment_of_another(director, path):
    with open_as(director, "colleague", client_id=USER) as channel:
        error = refusal(lambda: call(channel, path, CALLS_OF_NOTEBOOKS[path]))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == f"user 'colleague' has no experiment '{EXPERIMENT}'"


@pytest.mark.usefixtures("unchanged")
def test_a_user_who_has_an_envoys_name_is_no_envoy(director, tmp_path, certificates):
    """The role counts, not the name alone."""
    pair = issue(load_authority(certificates), "b", "user")
    with open_with(director, certificates, pair) as channel:
        for path, requests in CALLS_OF_ENVOYS.items():
            error = refusal(lambda path=path, requests=requests: call(channel, path, requests))
            assert error.details() == refusal_of("user", "b")


@pytest.mark.usefixtures("unchanged")
def test_nothing_is_received_of_who_may_not_make_a_call(director):
    """gRPC refuses a message for its size only when it has all of it in memory."""
    only_envoys, only_users = CALLS_OF_ENVOYS.keys() - CALLS_OF_NOTEBOOKS, CALLS_OF_NOTEBOOKS.keys() - CALLS_OF_ENVOYS
    large = bytes(64 << 20)
    with grows_by_less_than(48e6, director.pid("director")):
        for name, paths in ((USER, only_envoys), ("b", only_users), (USER, NOT_SERVED)):
            with open_as(director, name) as channel:
                for path in paths:
                    with pytest.raises(grpc.RpcError):
                        channel.stream_stream(path)(iter([large]), timeout=60).result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much comes")
@pytest.mark.parametrize(
    ("name", "path"), [(USER, ROUNDS + "GetStatus"), (USER, ROUNDS + "Submit"), ("b", ROUNDS + "SendUpdate")]
)
@pytest.mark.usefixtures("unchanged")
def test_a_message_larger_than_any_is_not_received_whole(director, certificates, name, path):
    large, pair = bytes(400 << 20), [(certificates / f"{name}.{kind}").read_bytes() for kind in ("crt", "key")]
    within_bounds = grows_by_less_than(200e6, director.pid("director"))
    with open_with(director, certificates, pair) as channel, within_bounds:
        error = refusal(lambda: list(channel.stream_stream(path)(iter([large]), timeout=30)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "messages larger than any that this director takes" in error.details()


@pytest.mark.parametrize("path", NOT_SERVED)
@pytest.mark.usefixtures("unchanged")
def test_a_call_that_is_not_served_says_so(director, path):
    with open_as(director, USER) as channel:
        error = refusal(lambda: call(channel, path, NOT_SERVED[path]))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "<class" not in error.details()


def test_a_call_that_no_service_has_is_refused(director, unchanged):
    with open_as(director, USER) as channel:
        error = refusal(lambda: channel.unary_unary(ROUNDS + "DeleteEverything")(b"", timeout=60))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def no_certificate(certificates: Path) -> tuple[None, None]:
    return None, None


def of_a_foreign_authority(certificates: Path) -> tuple[bytes, bytes]:
    return issue(create_authority(), "b", "envoy")


def expired(certificates: Path) -> tuple[bytes, bytes]:
    past = datetime.now(timezone.utc) - timedelta(days=40)
    return issue(load_authority(certificates), "b", "envoy", days=30, now=past)


def of_the_director(certificates: Path) -> tuple[bytes, bytes]:
    """Good for a server only."""
    return (certificates / "director.crt").read_bytes(), (certificates / "director.key").read_bytes()


@pytest.mark.parametrize("certificate", [no_certificate, of_a_foreign_authority, expired, of_the_director])
@pytest.mark.usefixtures("unchanged")
def test_no_call_goes_through_with_a_certificate_that_is_not_good(director, certificates, certificate):
    with open_with(director, certificates, certificate(certificates)) as channel:
        for path in METHODS:
            requests = (CALLS_OF_ENVOYS | CALLS_OF_NOTEBOOKS | NOT_SERVED)[path]
            error = refusal(lambda path=path, requests=requests: call(channel, path, requests))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.usefixtures("unchanged")
def test_no_call_goes_through_without_tls(director):
    with grpc.insecure_channel(f"127.0.0.1:{director.port}") as channel:
        for path in METHODS:
            requests = (CALLS_OF_ENVOYS | CALLS_OF_NOTEBOOKS | NOT_SERVED)[path]
            error = refusal(lambda path=path, requests=requests: call(channel, path, requests))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


def open_with(director: LocalFederation, certificates: Path, pair: Sequence[bytes | None]) -> grpc.Channel:
    certificate, key = pair
    root = (certificates / "ca.crt").read_bytes()
    return grpc.secure_channel(f"127.0.0.1:{director.port}", grpc.ssl_channel_credentials(root, key, certificate))


def test_an_envoy_with_tls_cannot_join_a_director_without_it(tmp_path, certificates):
    with (
        LocalFederation(tmp_path / "plain", None, USER) as plain,
        LocalFederation(tmp_path / "beside", certificates, USER) as beside,
    ):
        plain.start_director()
        wait_for(lambda: is_up(plain))
        before = state_of(plain)
        beside.port = plain.port
        beside.start_envoy("a", points(1), connect_timeout=1.0)
        assert beside.wait_for_exit("a", READY_SECONDS) == 1
        *_, sentence = beside.log("a").read_text().splitlines()
        assert sentence.startswith(f"openfl-audio envoy: cannot reach the director at 127.0.0.1:{plain.port}")
        assert sentence.endswith("with TLS on like this envoy?")
        assert state_of(plain) == before
        log = plain.log("director").read_text()
        assert "without TLS: any client may connect" in log
        assert "Traceback" not in log
