"""A federation over four hosts, each a network namespace with its own keys, from requests to the release report."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import load_authority, sign
from openfl_audio.protocol.certificate_requests import read_request
from openfl_audio.protocol.record import RECORD
from tests.integration.conftest import points, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PORT = 50051  # nothing else listens in a namespace
SITES = {"site-a": 1, "site-b": 3}  # points each
# A round takes 0.3 s at least: the experiment is longer than the first certificate of site-b lasts.
CERTIFICATE_SECONDS, ROUNDS = 45, 160
NOTEBOOK = Path(__file__).with_name("four_hosts_notebook.py")
STEP_SECONDS = 120


class Host(NamedTuple):
    """A network namespace ("" for a machine in no network), its address, and the folder that stands for its disk."""

    namespace: str
    address: str
    folder: Path

    def command(self, *arguments: object) -> list[str]:
        """Return the command line that runs Python with `arguments` on this host."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        return [*inside, sys.executable, *map(str, arguments)]

    def openfl_audio(self, *arguments: object, code: int = 0) -> str:
        """Run a command of `openfl-audio` in the host's folder, and return what it prints."""
        command = self.command("-m", "openfl_audio.cli", *arguments)
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=STEP_SECONDS)
        print(f"{self.folder.name}$ openfl-audio {' '.join(map(str, arguments))}\n{ended.stdout}{ended.stderr}")
        assert ended.returncode == code, ended.stderr
        return ended.stdout


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def switched_hosts(folder: Path, *names: str) -> Iterator[dict[str, Host]]:
    """Make a namespace for each name, all on one bridge, which is in a namespace too: the machine's network stays."""
    run, made = f"ofa-{os.getpid()}-{secrets.token_hex(2)}", []

    def add(name: str) -> str:
        ip("netns", "add", f"{run}-{name}")
        made.append(f"{run}-{name}")
        return made[-1]

    try:
        try:
            switch = add("switch")
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace with a bridge can be made here: {error.stderr.strip()}")
        ip("-n", switch, "link", "set", "bridge", "up")
        hosts = {}
        for number, name in enumerate(names, start=1):
            hosts[name] = host = Host(add(name), f"10.77.0.{number}", folder / name)
            host.folder.mkdir()
            cable = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            ip("-n", switch, *cable)
            ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                ip("-n", host.namespace, "link", "set", interface, "up")
        yield hosts
    finally:
        for namespace in reversed(made):
            ip("netns", "delete", namespace)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("network namespaces need Linux and root")
    if not shutil.which("ip"):
        pytest.skip("ip (iproute2) is not installed")
    with switched_hosts(tmp_path, "director", *SITES, "laboratory") as hosts:
        yield hosts


@pytest.fixture
def processes(hosts: dict[str, Host], tmp_path: Path) -> Iterator[LocalFederation]:
    """Processes on the hosts, which end before the hosts do."""
    with LocalFederation(tmp_path / "processes", None, "nobody") as processes:
        yield processes


@pytest.fixture
def office(tmp_path: Path) -> Host:
    """The machine with the authority, which is in no network, and the key of an operator who works at it."""
    office = Host("", "", tmp_path / "office")
    office.folder.mkdir()
    office.openfl_audio("certificates", "make", "--out", "authority", "--operator", "olga")
    return office


def sign_at(office: Host, host: Host, name: str, role: str, *options: str) -> None:
    """Carry a request to the office, sign it there, and carry the answer back."""
    shutil.copy(host.folder / f"{name}.csr", office.folder)
    office.openfl_audio("certificates", "sign", f"{name}.csr", "--role", role, "--authority", "authority", *options)
    shutil.copy(office.folder / "authority" / f"{name}.crt", host.folder)


def enrol(office: Host, host: Host, name: str, role: str, *options: str) -> None:
    host.openfl_audio("certificates", "request", name, "--role", role, "--out", ".", *options)
    sign_at(office, host, name, role)


def make_short(office: Host, host: Host, name: str) -> None:
    """Replace an envoy's certificate by one that soon ends: the command signs for a day at least."""
    signing, expires = (
        load_authority(office.folder / "authority"),
        datetime.now(timezone.utc) + timedelta(seconds=CERTIFICATE_SECONDS),
    )
    key = read_request(host.folder / f"{name}.csr").public_key
    certificate = sign(signing, key, name, "envoy", days=1, now=expires - timedelta(days=1))
    (host.folder / f"{name}.crt").write_bytes(certificate + signing.certificate.public_bytes(Encoding.PEM))


def record_of(host: Host) -> Path:
    return next((host.folder / "state").rglob(RECORD))


def entries(host: Host, event: str, **fields: object) -> list[dict]:
    """Return the entries of the host's record for an event, with these fields."""
    lines = record_of(host).read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be half written
    return [entry for entry in found if entry["event"] == event and fields.items() <= entry.items()]


def start(processes: LocalFederation, host: Host, name: str, settings: dict, *command: str) -> None:
    (host.folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    arguments = ("-m", "openfl_audio.cli", *command, "-c", "settings.yaml")
    processes.run(name, host.command(*arguments), cwd=host.folder, env=os.environ)


def submit(processes: LocalFederation, hosts: dict[str, Host], user: str, experiment: str, rounds: int) -> None:
    laboratory = hosts["laboratory"]
    command = laboratory.command(NOTEBOOK, hosts["director"].address, PORT, user, experiment, rounds)
    processes.run(user, command, cwd=laboratory.folder, env=os.environ)


def test_certificates_end_and_are_renewed_and_records_agree_over_four_hosts(hosts, office, processes, tmp_path):
    director, laboratory = hosts["director"], hosts["laboratory"]

    def log(name: str) -> str:
        return processes.log(name).read_text(errors="replace")

    # Keys are made where they stay.
    enrol(office, director, "director", "director", "--host", director.address)
    for site in SITES:
        enrol(office, hosts[site], site, "envoy")
    for user in ("scientist", "colleague"):
        enrol(office, laboratory, user, "user")
    keys = {host: sorted(path.stem for path in (tmp_path / host).rglob("*.key")) for host in [*hosts, "office"]}
    assert keys == {
        **{name: [name] for name in ("director", *SITES)},
        "laboratory": ["colleague", "scientist"],
        "office": ["ca", "olga"],
    }

    settings = {"listen_host": director.address, "listen_port": PORT, "runs": "state", "certificates": "."}
    start(processes, director, "director", {"settings": settings}, "director")
    wait_for(lambda: "listens" in log("director"), STEP_SECONDS)
    for site, n_points in SITES.items():
        if site == "site-b":
            make_short(office, hosts[site], site)
        params = {"director_host": director.address, "director_port": PORT, "work_dir": "state", "certificates": "."}
        start(
            processes, hosts[site], site, {"params": params, "shard_descriptor": points(n_points)}, "envoy", "-n", site
        )
        wait_for(lambda site=site: "is registered at" in log(site), STEP_SECONDS)

    # An experiment runs until the certificate of a connected envoy ends, and goes on with the renewed one.
    submit(processes, hosts, "scientist", "steady", ROUNDS)
    wait_for(lambda: entries(director, "aggregated", experiment="steady"), STEP_SECONDS)
    wait_for(lambda: "site-b.crt expired on" in log("site-b"), STEP_SECONDS)
    (expired,) = entries(director, "certificate_expired")
    assert expired["of"] == "envoy 'site-b'"
    before = len(entries(director, "aggregated", experiment="steady"))
    assert 0 < before < ROUNDS
    hosts["site-b"].openfl_audio("certificates", "request", "site-b", "--role", "envoy", "--out", ".", "--renew")
    sign_at(office, hosts["site-b"], "site-b", "envoy", "--force")
    wait_for(lambda: len(entries(director, "aggregated", experiment="steady")) > before, STEP_SECONDS)
    assert "the renewed certificate of 'site-b' is used from now on" in log("site-b")
    assert processes.wait_for_exit("scientist", 2 * STEP_SECONDS) == 0, log("scientist")
    (ended,) = entries(director, "ended", experiment="steady")
    assert (ended["status"], len(entries(director, "aggregated", experiment="steady"))) == ("finished", ROUNDS)

    # A user is revoked in mid-run: the calls end, and the experiment is stopped, as chosen.
    submit(processes, hosts, "colleague", "unwanted", 10_000)
    wait_for(lambda: len(entries(director, "aggregated", experiment="unwanted")) > 1, STEP_SECONDS)
    office.openfl_audio("certificates", "revoke", "colleague", "--experiments", "stop", "--authority", "authority")
    shutil.copy(office.folder / "authority/revoked.txt", director.folder)
    assert processes.wait_for_exit("colleague", STEP_SECONDS) != 0
    assert "the certificate of user 'colleague' is revoked" in log("colleague")
    (ended,) = wait_for(lambda: entries(director, "ended", experiment="unwanted"), STEP_SECONDS)
    assert ended["status"] == "stopped"
    processes.stop(*SITES)
    processes.stop("director")

    # Records agree in both directions, a cut copy is found, and the model has its report.
    records = {name: record_of(hosts[name]) for name in ("director", *SITES)}
    office.folder.joinpath("records").mkdir()
    for name, path in records.items():
        shutil.copy(path, office.folder / "records" / f"{name}.jsonl")

    def verify(file: str, other: str, code: int = 0) -> str:
        files = (f"records/{file}.jsonl", "--against", f"records/{other}.jsonl", "--ca", "authority/ca.crt")
        return office.openfl_audio("audit", "verify", *files, code=code)

    for site in SITES:
        for file, other in (("director", site), (site, "director")):
            assert "the chain holds, and agrees with the other side" in verify(file, other)
    lines = (office.folder / "records/site-a.jsonl").read_bytes().splitlines(keepends=True)
    (office.folder / "records/cut.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    assert f"fault: the end is cut off: it has {len(lines) // 2} entries" in verify("cut", "director", code=1)
    sites = [f"../{records[site].relative_to(tmp_path)}" for site in SITES]
    office.openfl_audio(
        "audit", "report", "steady", "--runs", "../director/state", "--sites", *sites, "--out", "report"
    )
    report = (office.folder / "report/steady.md").read_text()
    assert "by user 'scientist'" in report
    # Envoys with 1 and 3 points add as many in a round, weighted by them 2.5: no update was lost or counted twice.
    assert f"| slope | {ROUNDS * 2.5:.0f} |" in report
