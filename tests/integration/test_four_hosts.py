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


@pytest.mark.timeout(600)
def test_a_site_decides_and_a_task_gets_nothing_of_it_over_four_hosts(hosts, office, processes, tmp_path):
    if not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    director, laboratory, asked, open_site = (hosts[name] for name in ("director", "laboratory", *SITES))
    secret = f"secret-{secrets.token_hex(8)}"
    (open_site.folder / "planted.txt").write_text(secret)
    (laboratory.folder / "go").touch()

    def log(name: str) -> str:
        return processes.log(name).read_text(errors="replace")

    def notebook(name: str, site: str, **task: object) -> None:
        arguments = (SITE_NOTEBOOK, director.address, PORT, name, site, json.dumps(task))
        processes.run(name, laboratory.command(*arguments), cwd=laboratory.folder, env=os.environ)

    def outcome(name: str) -> str:
        assert processes.wait_for_exit(name, STEP_SECONDS) == 0, log(name)
        return log(name)

    def rows(name: str) -> list[dict]:
        return json.loads(next(line for line in outcome(name).splitlines() if line.startswith("[{")))

    def waits(name: str) -> bool:
        return any(each.name == name for each in Approvals(asked.folder / "state" / "site-a").waiting())

    enrol(office, director, "director", "director", "--host", director.address)
    enrol(office, laboratory, "scientist", "user")
    settings = {"listen_host": director.address, "listen_port": PORT, "runs": "state", "certificates": "."}
    start(processes, director, "director", {"settings": settings}, "director")
    wait_for(lambda: "listens" in log("director"), STEP_SECONDS)
    person = {"template": "toy.shard.NamedPointsShardDescriptor", "params": {"n_points": 3, "person": PERSON}}
    policy = {"counts": "none", "metrics": ["accuracy", "slope", "loss", *WANTED]}
    for site, shard, own in (
        ("site-a", points(1), {"approval": "ask"}),
        ("site-b", person, {"policy": policy}),
    ):
        enrol(office, hosts[site], site, "envoy")
        params = {"director_host": director.address, "director_port": PORT, "work_dir": "state", "certificates": "."}
        settings = {"params": params | own | {"sandbox": "require"}, "shard_descriptor": shard}
        start(processes, hosts[site], site, settings, "envoy", "-n", site)
        wait_for(lambda site=site: "is registered at" in log(site), STEP_SECONDS)
        assert "workers run in a sandbox of bubblewrap, without network" in log(site)

    # A site is asked, shown all, and approves; another version asks again, and is rejected.
    at_site = ("-n", "site-a", "-c", "settings.yaml")
    notebook("asked", "site-a", start=0.0)
    wait_for(lambda: waits("asked"), STEP_SECONDS)
    assert "signed with that certificate: waits for a decision" in asked.openfl_audio("review", "asked", *at_site)
    asked.openfl_audio("approve", "asked", *at_site)
    assert rows("asked")[-1]["slope"] == 2.0
    notebook("changed", "site-a", start=1.0)
    wait_for(lambda: waits("changed"), STEP_SECONDS)
    assert "== Differences to 'asked'" in asked.openfl_audio("review", "changed", *at_site)
    asked.openfl_audio("reject", "changed", "--reason", "no consent for this purpose", *at_site)
    assert "the site of envoy 'site-a' has rejected this experiment: no consent" in outcome("changed")

    # A director that delivers other code under the name of what was approved is found: the site is asked again.
    (laboratory.folder / "go").unlink()
    notebook("swapped", "site-a", start=0.0)
    wait_for(lambda: "connected" in log("swapped"), STEP_SECONDS)
    os.kill(processes.pid("site-a"), signal.SIGSTOP)
    try:
        (laboratory.folder / "go").touch()
        archive = director.folder / "state/swapped" / ARCHIVE
        wait_for(lambda: "experiment 'swapped' submitted" in log("director"), STEP_SECONDS)
        archive.write_bytes(with_other_code(archive.read_bytes()))
    finally:
        os.kill(processes.pid("site-a"), signal.SIGCONT)
    wait_for(lambda: waits("swapped"), STEP_SECONDS)
    assert "add_(len(points) + 1)" in asked.openfl_audio("review", "swapped", *at_site)
    asked.openfl_audio("reject", "swapped", "--reason", "it is not what was approved", *at_site)
    assert "has rejected this experiment: it is not what was approved" in outcome("swapped")

    # A task gets neither key nor file nor network nor process, and what it leaves behind ends.
    names = {"key": "site-b.key", "certificate": "site-b.crt", "settings": "settings.yaml", "planted": "planted.txt"}
    files = {wanted: str(open_site.folder / name) for wanted, name in names.items()}
    files["record"] = str(record_of(open_site))
    note = str(open_site.folder / "state/site-b/note")
    notebook("tempt", "site-b", tempt=[files, note, [director.address, PORT], secret, processes.pid("site-b")])
    row = rows("tempt")[0]
    got = {name: row.get(f"train {name}", row.get(name)) for name in WANTED}
    print("site-b, what a task got:", got)
    assert got == dict.fromkeys(WANTED, 0.0)
    assert not Path(note).exists()
    seconds = "876543"
    notebook("leave", "site-b", leave=[seconds])
    wait_for(lambda: sleeps(seconds), STEP_SECONDS)
    outcome("leave")
    wait_for(lambda: not sleeps(seconds), STEP_SECONDS)

    # The name that recordings, prints, losses and an exception have reaches neither director nor notebook.
    notebook("tell", "site-b", tell=[])
    assert "builtins.ValueError" in outcome("tell")
    assert PERSON in (open_site.folder / "state/site-b/tell/worker.log").read_text(), "the site itself has it"
    reached = [path for host in (director, laboratory) for path in host.folder.rglob("*") if path.is_file()]
    reached += [processes.log(name) for name in ("director", "tell")]
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


def test_the_page_is_served_to_another_host_over_tls_only(hosts, office, processes):
    director, laboratory = hosts["director"], hosts["laboratory"]
    enrol(office, director, "director", "director", "--host", director.address)
    enrol(office, laboratory, "scientist", "user")
    shutil.copy(office.folder / "authority/ca.crt", laboratory.folder)
    about = {"listen_host": director.address, "listen_port": PORT, "runs": "state", "certificates": "."}
    settings = {"settings": about | {"page": {"host": director.address, "port": 8050}}}
    start(processes, director, "director", settings, "director")
    wait_for(lambda: "the page is at" in processes.log("director").read_text(), STEP_SECONDS)
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

    about["page"] = {"host": director.address, "port": 8051}
    (director.folder / "open.yaml").write_text(yaml.safe_dump({"settings": about | {"listen_port": PORT + 1}}))
    command = director.command("-m", "openfl_audio.cli", "director", "-c", "open.yaml", "--disable-tls")
    refused = subprocess.run(command, cwd=director.folder, capture_output=True, text=True, timeout=STEP_SECONDS)
    assert refused.returncode != 0
    assert "TLS" in refused.stderr, refused.stderr


def sleeps(seconds: str) -> bool:
    return any(process.info["cmdline"] == ["sleep", seconds] for process in psutil.process_iter(["cmdline"]))
