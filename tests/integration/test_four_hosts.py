"""A federation over four hosts, each a network namespace with its own keys: records, and sites that decide."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from openfl_audio.envoy.approval import Approvals
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import load_authority, sign
from openfl_audio.protocol.certificate_requests import read_request
from openfl_audio.protocol.plan import ARCHIVE
from openfl_audio.protocol.record import RECORD
from tests.integration.conftest import points, wait_for
from tests.integration.test_approval import PERSON, with_other_code
from tests.integration.test_sandbox import WANTED

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PORT = 50051  # nothing else listens in a namespace
SITES = {"site-a": 1, "site-b": 3}  # points each
# A round takes 0.3 s at least: the experiment is longer than the first certificate of site-b lasts.
CERTIFICATE_SECONDS, ROUNDS = 45, 160
NOTEBOOK, SITE_NOTEBOOK = (Path(__file__).with_name(f"four_hosts_{name}.py") for name in ("notebook", "site"))
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


def record_of(host: Host) -> Path:
    return next((host.folder / "state").rglob(RECORD))


def entries(host: Host, event: str, **fields: object) -> list[dict]:
    """Return the entries of the host's record for an event, with these fields."""
    lines = record_of(host).read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be half written
    return [entry for entry in found if entry["event"] == event and fields.items() <= entry.items()]


class FourHosts(NamedTuple):
    """A director, two sites and a laboratory, the office that signs their certificates, and their processes."""

    hosts: dict[str, Host]
    office: Host
    processes: LocalFederation

    @property
    def director(self) -> Host:
        """Return the host of the director."""
        return self.hosts["director"]

    @property
    def laboratory(self) -> Host:
        """Return the host of the notebooks."""
        return self.hosts["laboratory"]

    def log(self, name: str) -> str:
        """Return what a process has printed so far."""
        return self.processes.log(name).read_text(errors="replace")

    def sign(self, host: Host, name: str, role: str, *options: str) -> None:
        """Carry a request to the office, sign it there, and carry the answer back."""
        shutil.copy(host.folder / f"{name}.csr", self.office.folder)
        signing = ("certificates", "sign", f"{name}.csr", "--role", role, "--authority", "authority", *options)
        self.office.openfl_audio(*signing)
        shutil.copy(self.office.folder / "authority" / f"{name}.crt", host.folder)

    def enrol(self, host: Host, name: str, role: str, *options: str) -> None:
        """Make a key where it stays, and have it signed."""
        host.openfl_audio("certificates", "request", name, "--role", role, "--out", ".", *options)
        self.sign(host, name, role)

    def make_short(self, host: Host, name: str) -> None:
        """Replace an envoy's certificate by one that soon ends: the command signs for a day at least."""
        signing = load_authority(self.office.folder / "authority")
        expires = datetime.now(timezone.utc) + timedelta(seconds=CERTIFICATE_SECONDS)
        key = read_request(host.folder / f"{name}.csr").public_key
        certificate = sign(signing, key, name, "envoy", days=1, now=expires - timedelta(days=1))
        (host.folder / f"{name}.crt").write_bytes(certificate + signing.certificate.public_bytes(Encoding.PEM))

    def run(self, host: Host, name: str, settings: dict, *command: str) -> None:
        """Start a command of `openfl-audio` on a host, with settings in a file."""
        (host.folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        arguments = ("-m", "openfl_audio.cli", *command, "-c", "settings.yaml")
        self.processes.run(name, host.command(*arguments), cwd=host.folder, env=os.environ)

    def run_notebook(self, name: str, file: Path, *arguments: object) -> None:
        """Start a notebook's code in the laboratory."""
        command = self.laboratory.command(file, self.director.address, PORT, *arguments)
        self.processes.run(name, command, cwd=self.laboratory.folder, env=os.environ)

    def start_director(self, **settings: object) -> None:
        """Start the director, and wait until it listens."""
        own = {"listen_host": self.director.address, "listen_port": PORT, "runs": "state", "certificates": "."}
        self.run(self.director, "director", {"settings": own | settings}, "director")
        wait_for(lambda: "listens" in self.log("director"), STEP_SECONDS)

    def start_envoy(self, site: str, shard: dict, **params: object) -> None:
        """Start a site's envoy, and wait until it is registered."""
        own = {"director_host": self.director.address, "director_port": PORT, "work_dir": "state", "certificates": "."}
        self.run(self.hosts[site], site, {"params": own | params, "shard_descriptor": shard}, "envoy", "-n", site)
        wait_for(lambda: "is registered at" in self.log(site), STEP_SECONDS)


@pytest.fixture
def four(hosts: dict[str, Host], office: Host, processes: LocalFederation) -> FourHosts:
    return FourHosts(hosts, office, processes)


def test_certificates_end_and_are_renewed_and_records_agree_over_four_hosts(four, tmp_path):
    _make_keys_where_they_stay(four, tmp_path)
    four.start_director()
    for site, n_points in SITES.items():
        if site == "site-b":
            four.make_short(four.hosts[site], site)
        four.start_envoy(site, points(n_points))
    _run_until_a_certificate_ends_and_go_on_with_a_renewed_one(four)
    _revoke_a_user_in_mid_run(four)
    four.processes.stop(*SITES)
    four.processes.stop("director")
    _compare_records(four)
    _report(four, tmp_path)


def _make_keys_where_they_stay(four: FourHosts, folder: Path) -> None:
    four.enrol(four.director, "director", "director", "--host", four.director.address)
    for site in SITES:
        four.enrol(four.hosts[site], site, "envoy")
    for user in ("scientist", "colleague"):
        four.enrol(four.laboratory, user, "user")
    keys = {host: sorted(path.stem for path in (folder / host).rglob("*.key")) for host in [*four.hosts, "office"]}
    assert keys == {
        **{name: [name] for name in ("director", *SITES)},
        "laboratory": ["colleague", "scientist"],
        "office": ["ca", "olga"],
    }


def _run_until_a_certificate_ends_and_go_on_with_a_renewed_one(four: FourHosts) -> None:
    """See an experiment wait for a connected envoy whose certificate has ended, and finish once it is renewed."""
    director, site = four.director, four.hosts["site-b"]

    def rounds() -> int:
        return len(entries(director, "aggregated", experiment="steady"))

    four.run_notebook("scientist", NOTEBOOK, "scientist", "steady", ROUNDS)
    wait_for(rounds, STEP_SECONDS)
    wait_for(lambda: "site-b.crt expired on" in four.log("site-b"), STEP_SECONDS)
    (expired,) = entries(director, "certificate_expired")
    assert expired["of"] == "envoy 'site-b'"
    before = rounds()
    assert 0 < before < ROUNDS
    site.openfl_audio("certificates", "request", "site-b", "--role", "envoy", "--out", ".", "--renew")
    four.sign(site, "site-b", "envoy", "--force")
    wait_for(lambda: rounds() > before, STEP_SECONDS)
    assert "the renewed certificate of 'site-b' is used from now on" in four.log("site-b")
    assert four.processes.wait_for_exit("scientist", 2 * STEP_SECONDS) == 0, four.log("scientist")
    (ended,) = entries(director, "ended", experiment="steady")
    assert (ended["status"], rounds()) == ("finished", ROUNDS)


def _revoke_a_user_in_mid_run(four: FourHosts) -> None:
    """See a revoked user's calls end, and the experiment stop, as chosen."""
    four.run_notebook("colleague", NOTEBOOK, "colleague", "unwanted", 10_000)
    wait_for(lambda: len(entries(four.director, "aggregated", experiment="unwanted")) > 1, STEP_SECONDS)
    revoke = ("certificates", "revoke", "colleague", "--experiments", "stop", "--authority", "authority")
    four.office.openfl_audio(*revoke)
    shutil.copy(four.office.folder / "authority/revoked.txt", four.director.folder)
    assert four.processes.wait_for_exit("colleague", STEP_SECONDS) != 0
    assert "the certificate of user 'colleague' is revoked" in four.log("colleague")
    (ended,) = wait_for(lambda: entries(four.director, "ended", experiment="unwanted"), STEP_SECONDS)
    assert ended["status"] == "stopped"


def _compare_records(four: FourHosts) -> None:
    """See records agree in both directions, and a cut copy found."""
    records = four.office.folder / "records"
    records.mkdir()
    for name in ("director", *SITES):
        shutil.copy(record_of(four.hosts[name]), records / f"{name}.jsonl")

    def verify(file: str, other: str, code: int = 0) -> str:
        files = (f"records/{file}.jsonl", "--against", f"records/{other}.jsonl", "--ca", "authority/ca.crt")
        return four.office.openfl_audio("audit", "verify", *files, code=code)

    for site in SITES:
        for file, other in (("director", site), (site, "director")):
            assert "the chain holds, and agrees with the other side" in verify(file, other)
    lines = (records / "site-a.jsonl").read_bytes().splitlines(keepends=True)
    (records / "cut.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    assert f"fault: the end is cut off: it has {len(lines) // 2} entries" in verify("cut", "director", code=1)


def _report(four: FourHosts, folder: Path) -> None:
    """See the model get its report."""
    sites = [f"../{record_of(four.hosts[site]).relative_to(folder)}" for site in SITES]
    asked = ("audit", "report", "steady", "--runs", "../director/state", "--sites", *sites, "--out", "report")
    four.office.openfl_audio(*asked)
    report = (four.office.folder / "report/steady.md").read_text()
    assert "by user 'scientist'" in report
    # Envoys with 1 and 3 points add as many in a round, weighted by them 2.5: no update was lost or counted twice.
    assert f"| slope | {ROUNDS * 2.5:.0f} |" in report


class Deciding(NamedTuple):
    """Four hosts of which site-a is asked before code runs, and site-b has recordings with a person's name."""

    four: FourHosts

    def submit(self, name: str, site: str, **task: object) -> None:
        """Submit an experiment of one site's tasks."""
        self.four.run_notebook(name, SITE_NOTEBOOK, name, site, json.dumps(task))

    def outcome(self, name: str) -> str:
        """Wait for the end of an experiment, and return what its notebook has printed."""
        assert self.four.processes.wait_for_exit(name, STEP_SECONDS) == 0, self.four.log(name)
        return self.four.log(name)

    def rows(self, name: str) -> list[dict]:
        """Wait for the end of an experiment, and return the rows of its history."""
        return json.loads(next(line for line in self.outcome(name).splitlines() if line.startswith("[{")))

    def wait_until_asked(self, name: str) -> None:
        """Wait until site-a is asked for an experiment."""
        approvals = Approvals(self.four.hosts["site-a"].folder / "state" / "site-a")
        wait_for(lambda: any(each.name == name for each in approvals.waiting()), STEP_SECONDS)

    def decide(self, decision: str, name: str, *options: str) -> str:
        """Run a command of the person at site-a."""
        return self.four.hosts["site-a"].openfl_audio(decision, name, *options, "-n", "site-a", "-c", "settings.yaml")


@pytest.mark.timeout(600)
def test_a_site_decides_and_a_task_gets_nothing_of_it_over_four_hosts(four):
    if not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    four.enrol(four.director, "director", "director", "--host", four.director.address)
    four.enrol(four.laboratory, "scientist", "user")
    four.start_director()
    (four.laboratory.folder / "go").touch()
    person = {"template": "toy.shard.NamedPointsShardDescriptor", "params": {"n_points": 3, "person": PERSON}}
    policy = {"counts": "none", "metrics": ["accuracy", "slope", "loss", *WANTED]}
    for site, shard, own in (("site-a", points(1), {"approval": "ask"}), ("site-b", person, {"policy": policy})):
        four.enrol(four.hosts[site], site, "envoy")
        four.start_envoy(site, shard, sandbox="require", **own)
        assert "workers run in a sandbox of bubblewrap, without network" in four.log(site)
    sites = Deciding(four)
    _ask_and_approve_and_reject_another_version(sites)
    _find_a_director_that_delivers_other_code(sites)
    _tempt_a_task(sites)
    _leave_a_process_behind(sites)
    _tell_a_name(sites)


def _ask_and_approve_and_reject_another_version(sites: Deciding) -> None:
    sites.submit("asked", "site-a", start=0.0)
    sites.wait_until_asked("asked")
    assert "signed with that certificate: waits for a decision" in sites.decide("review", "asked")
    sites.decide("approve", "asked")
    assert sites.rows("asked")[-1]["slope"] == 2.0
    sites.submit("changed", "site-a", start=1.0)
    sites.wait_until_asked("changed")
    assert "== Differences to 'asked'" in sites.decide("review", "changed")
    sites.decide("reject", "changed", "--reason", "no consent for this purpose")
    assert "the site of envoy 'site-a' has rejected this experiment: no consent" in sites.outcome("changed")


def _find_a_director_that_delivers_other_code(sites: Deciding) -> None:
    """See the site asked again for other code under the name of what was approved."""
    four, go = sites.four, sites.four.laboratory.folder / "go"
    go.unlink()
    sites.submit("swapped", "site-a", start=0.0)
    wait_for(lambda: "connected" in four.log("swapped"), STEP_SECONDS)
    os.kill(four.processes.pid("site-a"), signal.SIGSTOP)
    try:
        go.touch()
        archive = four.director.folder / "state/swapped" / ARCHIVE
        wait_for(lambda: "experiment 'swapped' submitted" in four.log("director"), STEP_SECONDS)
        archive.write_bytes(with_other_code(archive.read_bytes()))
    finally:
        os.kill(four.processes.pid("site-a"), signal.SIGCONT)
    sites.wait_until_asked("swapped")
    assert "add_(len(points) + 1)" in sites.decide("review", "swapped")
    sites.decide("reject", "swapped", "--reason", "it is not what was approved")
    assert "has rejected this experiment: it is not what was approved" in sites.outcome("swapped")


def _tempt_a_task(sites: Deciding) -> None:
    """See that a task gets neither key nor file nor network nor process of its site."""
    four, site = sites.four, sites.four.hosts["site-b"]
    secret = f"secret-{secrets.token_hex(8)}"
    (site.folder / "planted.txt").write_text(secret)
    names = {"key": "site-b.key", "certificate": "site-b.crt", "settings": "settings.yaml", "planted": "planted.txt"}
    files = {wanted: str(site.folder / name) for wanted, name in names.items()}
    files["record"] = str(record_of(site))
    note = str(site.folder / "state/site-b/note")
    director = [four.director.address, PORT]
    sites.submit("tempt", "site-b", tempt=[files, note, director, secret, four.processes.pid("site-b")])
    row = sites.rows("tempt")[0]
    got = {name: row.get(f"train {name}", row.get(name)) for name in WANTED}
    print("site-b, what a task got:", got)
    assert got == dict.fromkeys(WANTED, 0.0)
    assert not Path(note).exists()


def _leave_a_process_behind(sites: Deciding) -> None:
    seconds = "876543"
    sites.submit("leave", "site-b", leave=[seconds])
    wait_for(lambda: sleeps(seconds), STEP_SECONDS)
    sites.outcome("leave")
    wait_for(lambda: not sleeps(seconds), STEP_SECONDS)


def _tell_a_name(sites: Deciding) -> None:
    """See the name that recordings, prints, losses and an exception have reach neither director nor notebook."""
    four = sites.four
    sites.submit("tell", "site-b", tell=[])
    assert "builtins.ValueError" in sites.outcome("tell")
    own = four.hosts["site-b"].folder / "state/site-b/tell/worker.log"
    assert PERSON in own.read_text(), "the site itself has it"
    reached = [path for host in (four.director, four.laboratory) for path in host.folder.rglob("*") if path.is_file()]
    reached += [four.processes.log(name) for name in ("director", "tell")]
    assert len(reached) > 10
    for path in reached:
        assert PERSON not in path.read_bytes().decode(errors="replace"), path


LOG_IN = """
import json, ssl, sys, urllib.request
address, token = sys.argv[1:]
context = ssl.create_default_context(cafile="ca.crt")
opener = urllib.request.build_opener(
    urllib.request.HTTPSHandler(context=context), urllib.request.HTTPCookieProcessor()
)
headers = {"Content-Type": "application/json", "Origin": address}
content = json.dumps({"token": token}).encode()
opener.open(urllib.request.Request(f"{address}/api/login", content, headers), timeout=60)
print(opener.open(f"{address}/api/session", timeout=60).read().decode())
"""


def test_the_page_is_served_to_another_host_over_tls_only(four):
    director, laboratory = four.director, four.laboratory
    four.enrol(director, "director", "director", "--host", director.address)
    four.enrol(laboratory, "scientist", "user")
    shutil.copy(four.office.folder / "authority/ca.crt", laboratory.folder)
    four.start_director(page={"host": director.address, "port": 8050})
    wait_for(lambda: "the page is at" in four.log("director"), STEP_SECONDS)
    where = ("--director", f"{director.address}:{PORT}", "--certificates", ".", "--user", "scientist")
    address, _, token = laboratory.openfl_audio("page", *where).split()[0].partition("/login#token=")
    assert address == f"https://{director.address}:8050"

    def fetch(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = laboratory.command("-c", code, *arguments)
        return subprocess.run(command, cwd=laboratory.folder, capture_output=True, text=True, timeout=STEP_SECONDS)

    session = fetch(LOG_IN, address, token)
    assert '"scientist"' in session.stdout, session.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in fetch(LOG_IN.replace('cafile="ca.crt"', ""), address, token).stderr
    in_the_clear = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=60)"
    assert fetch(in_the_clear, f"http://{director.address}:8050/healthz").returncode != 0

    settings = yaml.safe_load((director.folder / "settings.yaml").read_text())
    settings["settings"] |= {"page": {"host": director.address, "port": 8051}, "listen_port": PORT + 1}
    (director.folder / "open.yaml").write_text(yaml.safe_dump(settings))
    command = director.command("-m", "openfl_audio.cli", "director", "-c", "open.yaml", "--disable-tls")
    refused = subprocess.run(command, cwd=director.folder, capture_output=True, text=True, timeout=STEP_SECONDS)
    assert refused.returncode != 0
    assert "TLS" in refused.stderr, refused.stderr


def sleeps(seconds: str) -> bool:
    return any(process.info["cmdline"] == ["sleep", seconds] for process in psutil.process_iter(["cmdline"]))
