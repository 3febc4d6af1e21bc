"""Faults at the start of a director, an envoy or a notebook, and the sentence that names each."""

import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from openfl_audio.errors import StartError
from openfl_audio.experiments.local_federation import LocalFederation, free_port
from openfl_audio.protocol.authority import create_authority, issue, load_authority, write_certificates
from tests.integration.conftest import ENVOYS, READY_SECONDS, USER, open_as, plan_of, points, submission_of, submit

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def director(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director with TLS, and the envoy 'a'."""
    with LocalFederation(tmp_path_factory.mktemp("director"), certificates, USER) as processes:
        processes.start_director()
        processes.start_envoy("a", points(1))
        processes.wait_until_ready("a", READY_SECONDS)
        yield processes


@pytest.fixture
def beside(director, certificates, tmp_path) -> Iterator:
    """Processes of another folder that dial the same director, with certificates of their own or without."""
    started = []

    def beside(folder: Path | None = certificates) -> LocalFederation:
        processes = LocalFederation(tmp_path / str(len(started)), folder, USER)
        processes.port = director.port
        started.append(processes)
        return processes

    yield beside
    for processes in started:
        processes.__exit__()


def ends_with(processes: LocalFederation, name: str) -> str:
    """The one line that a process wrote to its terminal before it ended with exit code 1."""
    assert processes.wait_for_exit(name, READY_SECONDS) == 1
    log = processes.log(name).read_text().splitlines()
    assert not any("Traceback" in line for line in log)
    return log[-1]


def folder_with(root: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(root, folder)
    return folder


def sign(folder: Path, name: str, role: str, authority, **changes) -> None:
    for suffix, pem in zip(("crt", "key"), issue(authority, name, role, **changes), strict=True):
        (folder / f"{name}.{suffix}").write_bytes(pem)


def test_two_directors_cannot_share_a_port(beside):
    second = beside()
    second.start_director()
    sentence = ends_with(second, "director")
    assert (
        sentence
        == f"openfl-audio director: cannot listen on 127.0.0.1:{second.port}: is another director running there?"
    )


@pytest.mark.parametrize(
    ("has_own_port", "sentence"),
    [(False, "is another director running there?"), (True, "another director works in")],
    ids=["the same port", "a port of its own"],
)
def test_a_second_director_leaves_the_folder_of_the_first_alone(director, beside, has_own_port, sentence):
    runs, second = director.folder / "director", beside()
    (second.folder / "director").symlink_to(runs)
    if has_own_port:
        second.port = free_port()
    submission = runs / ".submission-on-its-way"
    submission.touch()
    second.start_director()
    assert sentence in ends_with(second, "director")
    assert submission.exists()


def test_a_second_envoy_of_one_name_is_refused_and_the_first_stays(director, beside):
    second = beside()
    second.start_envoy("a", points(2))
    assert "an envoy named 'a' is connected already" in ends_with(second, "a")
    director.wait_until_ready("a", READY_SECONDS)


def test_an_envoy_gives_up_on_a_director_that_is_not_there(tmp_path, certificates):
    with LocalFederation(tmp_path, certificates, USER) as alone:
        alone.start_envoy("a", points(1), connect_timeout=1.0)
        sentence = ends_with(alone, "a")
    assert f"cannot reach the director at 127.0.0.1:{alone.port}" in sentence
    assert "is it running there" in sentence


def test_a_missing_certificate_is_named(beside):
    processes = beside()
    processes.start_envoy("nobody", points(1))
    assert "nobody.crt does not exist" in ends_with(processes, "nobody")


def test_an_expired_certificate_is_named_with_its_date(beside, tmp_path, certificates):
    folder = folder_with(certificates / "ca.crt", tmp_path / "expired")
    past = datetime.now(timezone.utc) - timedelta(days=40)
    sign(folder, "c", "envoy", load_authority(certificates), days=30, now=past)
    processes = beside(folder)
    processes.start_envoy("c", points(1))
    assert "c.crt expired on " in ends_with(processes, "c")


def test_a_certificate_of_another_name_is_refused_by_both_sides(beside, tmp_path, certificates):
    folder = folder_with(certificates / "ca.crt", tmp_path / "renamed")
    for suffix in ("crt", "key"):
        (folder / f"c.{suffix}").write_bytes((certificates / f"b.{suffix}").read_bytes())
    processes = beside(folder)
    processes.start_envoy("c", points(1))
    assert "is made out to 'b', not to 'c'" in ends_with(processes, "c")


def test_the_director_refuses_an_envoy_that_says_it_is_another(director, certificates):
    import grpc
    from openfl.protocols import director_pb2, director_pb2_grpc

    with open_as(director, "b") as channel:
        stub = director_pb2_grpc.DirectorStub(channel)
        info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name="c"))
        calls = [
            lambda: stub.UpdateShardInfo(director_pb2.UpdateShardInfoRequest(shard_info=info), timeout=60),
            lambda: stub.WaitExperiment(director_pb2.WaitExperimentRequest(collaborator_name="c"), timeout=60),
            lambda: stub.UpdateEnvoyStatus(director_pb2.UpdateEnvoyStatusRequest(name="c"), timeout=60),
            lambda: stub.SetExperimentFailed(
                director_pb2.SetExperimentFailedRequest(collaborator_name="c"), timeout=60
            ),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert caught.value.details() == "the certificate is that of envoy 'b', the call is made as envoy 'c'"


def test_a_description_that_no_notebook_could_fetch_is_refused(director):
    import grpc
    from openfl.protocols import director_pb2, director_pb2_grpc

    info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name="b"), shard_description="x" * 100_000)
    with open_as(director, "b") as channel, pytest.raises(grpc.RpcError) as caught:
        director_pb2_grpc.DirectorStub(channel).UpdateShardInfo(
            director_pb2.UpdateShardInfoRequest(shard_info=info), timeout=60
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "envoy 'b' describes its shard in 100013 bytes, more than 65536"


def test_an_envoys_certificate_cannot_submit(director, certificates):
    import grpc

    with open_as(director, "b") as channel, pytest.raises(grpc.RpcError) as caught:
        submit(channel, submission_of(plan_of("x")))
    assert caught.value.details() == "the certificate is that of envoy 'b', this call is for notebook users"
    assert not (director.folder / "director" / "x").exists()


def test_a_foreign_authority_is_no_way_in(beside, tmp_path):
    folder = tmp_path / "foreign"
    write_certificates(folder, director_hosts=["127.0.0.1"], envoys=["c"], users=[USER])
    processes = beside(folder)
    processes.start_envoy("c", points(1), connect_timeout=2.0)
    sentence = ends_with(processes, "c")
    assert "cannot reach the director" in sentence
    assert "CERTIFICATE_VERIFY_FAILED" in sentence


def test_a_certificate_that_the_director_does_not_know_is_no_way_in(beside, tmp_path, certificates):
    """It trusts the director, and was signed by another authority: refused by its own check, before any call."""
    folder = folder_with(certificates / "ca.crt", tmp_path / "stranger")
    sign(folder, "c", "envoy", create_authority())
    processes = beside(folder)
    processes.start_envoy("c", points(1))
    assert "was not signed by the authority" in ends_with(processes, "c")


def test_an_envoy_without_tls_cannot_join_a_director_with_it(beside):
    processes = beside(None)
    processes.start_envoy("c", points(1), connect_timeout=2.0)
    assert "with TLS off like this envoy?" in ends_with(processes, "c")


@pytest.mark.parametrize(
    ("data_path", "sentence"),
    [("nowhere", "nowhere"), (".", "Speech Commands")],
)
def test_an_envoy_without_good_data_says_so_and_ends(beside, data_path, sentence):
    processes = beside()
    descriptor = {"template": "shard_descriptors.superb.SuperbShardDescriptor", "params": {"data_path": data_path}}
    processes.start_envoy("b", descriptor)
    line = ends_with(processes, "b")
    assert line.startswith("openfl-audio envoy: ")
    assert sentence in line


def test_an_unknown_key_ends_an_envoy_with_the_key(beside):
    processes = beside()
    processes.start_envoy("b", points(1), directr_host="localhost")
    assert "unknown key 'params.directr_host'" in ends_with(processes, "b")


def test_a_notebook_is_told_what_is_wrong(director, connect, certificates, tmp_path):
    from openfl_audio.notebook.interactive_api import DirectorError, Federation

    with pytest.raises(DirectorError, match="the certificate is that of envoy 'b', this call is for notebook users, "):
        connect(director, "b")
    with (
        LocalFederation(tmp_path, certificates, USER) as nobody,
        pytest.raises(DirectorError, match="cannot reach the director"),
    ):
        connect(nobody)
    with pytest.raises(ValueError, match="cert_chain, api_cert and api_private_key are needed"):
        Federation(USER, "127.0.0.1", director.port)


def test_processes_that_end_early_are_reported_with_their_log(tmp_path, certificates):
    with LocalFederation(tmp_path, certificates, USER) as processes:
        processes.start_director()
        processes.start_envoy("a", points(1), work_dir=[1])
        with pytest.raises(StartError, match="(?s)a ended with exit code 1.*'params.work_dir'"):
            processes.wait_until_ready(ENVOYS, READY_SECONDS)
