"""Certificates that end or are renewed while a federation runs, and those of another authority."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import grpc
import numpy as np
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from safetensors.numpy import save

from openfl_audio.envoy.channel import RenewedChannel
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import create_authority, issue, load_authority, write_certificates
from openfl_audio.protocol.certificate_requests import sign_request, write_request
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.messages import HistoryRequest, StatusRequest
from openfl_audio.protocol.record import RECORD
from openfl_audio.protocol.revocation import revoke
from openfl_audio.protocol.wire import RoundsStub, certificate_fault, presented_certificate
from tests.integration.conftest import FakeEnvoy, open_as, plan_of, points, status_of, submission_of, submit, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def processes(tmp_path):
    """A director with an authority of its own, whose files a test may change."""
    folder = tmp_path / "certificates"
    write_certificates(folder, director_hosts=["127.0.0.1"], envoys=["a", "b"], users=["scientist", "colleague"])
    with LocalFederation(tmp_path / "federation", folder, "scientist") as federation:
        federation.start_director()
        wait_for(lambda: "listens" in federation.log("director").read_text())
        yield federation


def may_call(processes, user):
    with open_as(processes, user, client_id=user) as channel:
        try:
            RoundsStub(channel).get_status(encode(StatusRequest()), timeout=20)
        except grpc.RpcError as error:
            return error.details()
        return True


def states(processes):
    return {each["name"]: each["status"] for each in status_of(processes)["experiments"]}


def test_calls_of_a_revoked_certificate_end_at_once_and_its_experiments_by_wish(processes):
    model = save({"w": np.zeros(3, np.float32)})
    with FakeEnvoy(processes, "a") as revoked, FakeEnvoy(processes, "b") as other:
        for user, envoy in (("scientist", "a"), ("colleague", "b")):
            with open_as(processes, user, client_id=user) as channel:
                submit(channel, submission_of(plan_of(f"of-{user}", envoys=[envoy]), model=model))
        revoke(processes.certificates, ["a", "colleague"], "stop")
        wait_for(lambda: not revoked._thread.is_alive(), 30)
        with pytest.raises(grpc.RpcError) as refused:
            revoked.get_tasks("uuid-of-scientist")
        assert "the certificate of envoy 'a' is revoked" in refused.value.details()
        assert may_call(processes, "colleague") == "the certificate of user 'colleague' is revoked"
        assert may_call(processes, "scientist") is True
        assert other._thread.is_alive()
        log = processes.log("director")
        wait_for(lambda: "experiment 'of-colleague' is stopped" in log.read_text(), 30)
        assert states(processes)["of-scientist"] in ("pending", "in_progress")


def test_a_director_knows_when_an_envoys_certificate_ends(processes):
    certificate = x509.load_pem_x509_certificate((processes.certificates / "a.crt").read_bytes())
    with FakeEnvoy(processes, "a"):
        [envoy] = status_of(processes)["envoys"]
    assert envoy["certificate_expires"] == certificate.not_valid_after_utc.timestamp()


def test_an_experiment_of_somebody_revoked_goes_on_unless_it_is_to_stop(processes):
    with FakeEnvoy(processes, "a") as envoy:
        with open_as(processes, "scientist", client_id="scientist") as channel:
            submit(channel, submission_of(plan_of("kept", envoys=["a"]), model=save({"w": np.zeros(3, np.float32)})))
        revoke(processes.certificates, ["scientist"])
        wait_for(lambda: may_call(processes, "scientist") is not True, 30)
        assert wait_for(lambda: envoy.get_tasks("uuid-kept").tasks, 30)
        assert "stopped" not in processes.log("director").read_text()


def test_a_director_takes_up_its_renewed_certificate_and_a_second_authority(processes):
    root = (processes.certificates / "ca.crt").read_bytes()

    def shown():
        presented = presented_certificate("127.0.0.1", processes.port, root)
        return x509.load_der_x509_certificate(presented).serial_number

    before = shown()
    write_certificates(processes.certificates, director_hosts=["127.0.0.1"], force=True)
    assert shown() != before
    entries = map(json.loads, (processes.folder / "director" / RECORD).read_text().splitlines())
    (renewed,) = [entry for entry in entries if entry["event"] == "certificate_renewed"]
    assert (renewed["of"], int(renewed["serial"], 16)) == ("director 'director'", shown())
    # An authority takes over: until all have certificates of the new one, both are good.
    new = create_authority()
    certificate, key = issue(new, "successor", "user")
    (processes.certificates / "ca.crt").write_bytes(root + new.certificate.public_bytes(Encoding.PEM))
    (processes.certificates / "successor.crt").write_bytes(certificate)
    (processes.certificates / "successor.key").write_bytes(key)
    assert may_call(processes, "successor") is True
    assert may_call(processes, "scientist") is True


def test_what_a_site_asked_for_and_was_sent_lets_it_in(processes, tmp_path):
    site = tmp_path / "site"
    answer = sign_request(processes.certificates, write_request(site, "site-a", "envoy"), "envoy")
    shutil.copy(answer, site / "site-a.crt")
    with RenewedChannel(f"127.0.0.1:{processes.port}", site, "site-a") as channel:
        with pytest.raises(grpc.RpcError) as refused:  # by its role, and so its certificate is good
            RoundsStub(channel).get_status(encode(StatusRequest()), timeout=20)
        assert "is that of envoy 'site-a', this call is for" in refused.value.details()


def test_a_channel_goes_over_to_the_renewed_certificate(processes):
    with RenewedChannel(f"127.0.0.1:{processes.port}", processes.certificates, "scientist") as channel:
        stub = RoundsStub(channel)
        stub.get_status(encode(StatusRequest()), timeout=20)
        revoke(processes.certificates, ["scientist"])
        wait_for(lambda: may_call(processes, "scientist") is not True, 30)
        with pytest.raises(grpc.RpcError):
            stub.get_status(encode(StatusRequest()), timeout=20)
        (processes.certificates / "scientist.crt").write_text("half")  # a renewal that is being copied
        assert "scientist.crt is not a PEM certificate. Put a renewed one in its place" in channel.fault
        write_certificates(processes.certificates, users=["scientist"], force=True)
        assert channel.fault == ""
        stub.get_status(encode(StatusRequest()), timeout=20)


def test_calls_to_a_director_whose_certificate_is_revoked_end_until_it_has_another_one(processes, tmp_path):
    site = shutil.copytree(processes.certificates, tmp_path / "site")
    with (
        FakeEnvoy(processes, "a"),
        open_as(processes, "scientist", client_id="scientist") as notebook,
        RenewedChannel(f"127.0.0.1:{processes.port}", site, "scientist") as channel,
    ):
        submit(notebook, submission_of(plan_of("long", envoys=["a"]), model=save({"w": np.zeros(3, np.float32)})))
        stub = RoundsStub(channel)
        history = stub.get_history(encode(HistoryRequest(experiment="long")))
        revoke(site, ["director"])
        with pytest.raises(grpc.RpcError):
            list(history)
        with pytest.raises(grpc.RpcError) as refused:
            stub.get_status(encode(StatusRequest()), timeout=20)
        assert re.search("the certificate of the director, serial [0-9a-f]+, is revoked", refused.value.details())
        assert "is revoked; it has to get another one" in channel.fault
        write_certificates(processes.certificates, director_hosts=["127.0.0.1"], force=True)

        def answers() -> bool:
            with contextlib.suppress(grpc.RpcError):
                return bool(stub.get_status(encode(StatusRequest()), timeout=20))
            return False

        wait_for(answers, 60)


def test_why_a_directors_certificate_is_not_good_is_said_without_waiting(processes, tmp_path):
    address = f"127.0.0.1:{processes.port}"
    root = (processes.certificates / "ca.crt").read_bytes()
    assert certificate_fault(address, root) == ""
    stranger = tmp_path / "stranger"
    write_certificates(stranger, envoys=["a"])
    assert "signed by another authority" in certificate_fault(address, (stranger / "ca.crt").read_bytes())
    settings = {
        "params": {
            "director_host": "127.0.0.1", "director_port": processes.port, "certificates": str(stranger),
            "work_dir": str(tmp_path / "work"), "connect_timeout": 600,
        },
        "shard_descriptor": points(1),
    }  # fmt: skip
    config = tmp_path / "a.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "openfl_audio.cli", "envoy", "-n", "a", "-c", config]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "its certificate is signed by another authority than the one in this side's ca.crt" in ended.stderr


@pytest.mark.slow
def test_an_envoy_whose_certificate_expires_says_so_and_goes_on_with_a_renewed_one(processes):
    authority = load_authority(processes.certificates)
    expires = datetime.now(timezone.utc) + timedelta(seconds=30)
    certificate, key = issue(authority, "a", "envoy", days=1, now=expires - timedelta(days=1))
    (processes.certificates / "a.crt").write_bytes(certificate)
    (processes.certificates / "a.key").write_bytes(key)
    processes.start_envoy("a", points(1))
    processes.wait_until_ready(["a"], 25)
    log = processes.log("a")
    wait_for(lambda: "a.crt expired on" in log.read_text(), 60)
    registered = log.read_text().count("is registered at")
    write_certificates(processes.certificates, envoys=["a"], force=True)
    wait_for(lambda: log.read_text().count("is registered at") > registered, 60)
    assert "the renewed certificate of 'a' is used from now on" in log.read_text()
