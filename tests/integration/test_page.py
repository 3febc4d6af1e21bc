"""The page in Chromium, before a real federation: logins, faults as they happen, and what people do to experiments."""

import contextlib
import csv
import itertools
import os
import re
import signal
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

import psutil
import pytest
from openfl.protocols import director_pb2, director_pb2_grpc
from safetensors.numpy import load

from openfl_audio.cli.main import main
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import issue, load_authority, write_certificates
from openfl_audio.protocol.revocation import revoke
from openfl_audio.testing.fault_proxy import Proxy
from tests.integration.conftest import (
    ENVOYS,
    MONITOR,
    OPERATOR,
    READY_SECONDS,
    USER,
    open_as,
    points,
    status_of,
    wait_for,
)
from tests.integration.jupyter import browser, browser_or_skip
from tests.integration.page import Tab
from tests.integration.test_notebook import held_at

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=document.title='taken'>"
numbers = itertools.count()


@pytest.fixture(scope="module")
def chromium():
    browser_or_skip()
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed (the extra `dev` has it)")
    with browser() as context:
        yield context


@pytest.fixture(scope="module")
def federation(tmp_path_factory, certificates, chromium):
    """A director with its page, and the envoys 'a' and 'b': 'b' lets logs leave, and tasks see files of tests."""
    with LocalFederation(tmp_path_factory.mktemp("page"), certificates, USER, page=True) as processes:
        processes.start_director()
        processes.start_envoy("a", points(ENVOYS["a"]), sandbox="off")
        processes.start_envoy("b", points(ENVOYS["b"]), reports="logs", sandbox="off")
        processes.wait_until_ready(ENVOYS, READY_SECONDS)
        yield processes


@pytest.fixture
def tab(chromium, federation):
    with Tab(chromium, federation) as tab:
        yield tab


def submitted(federation, connect, train, rounds=2, envoys=("a", "b"), user=USER, validate=None, **changes):
    """Start an experiment of its own name on the toy's model and data."""
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    experiment = FLExperiment(connect(federation, user), f"shown-{next(numbers)}", workspace=toy)
    tasks = {"train": train} | ({"validate": validate} if validate else {})
    experiment.start(
        model_provider=model_interface(),
        task_keeper=task_interface(**tasks),
        data_loader=PointsData(),
        rounds_to_train=rounds,
        envoys=list(envoys),
        **changes,
    )
    return experiment


@pytest.fixture
def start(federation, connect):
    """Start experiments, and return their names; they are stopped when the test ends."""
    started = []

    def start(train, **options):
        started.append(submitted(federation, connect, train, **options))
        return started[-1].experiment_name

    yield start
    for experiment in started:
        with contextlib.suppress(Exception):  # some are deleted by then
            experiment.stop()


@pytest.fixture(scope="module")
def finished(federation, connect):
    """Return the name of an experiment of two rounds that has finished."""
    name = submitted(federation, connect, toy_train).experiment_name
    wait_for(lambda: state_of(federation, name) == "finished")
    return name


def state_of(processes, name):
    return next((each["status"] for each in status_of(processes)["experiments"] if each["name"] == name), None)


def wait_for_envoy(processes, envoy, state):
    """Wait until the director itself knows of a state: from then on the page has its seconds."""

    def current():
        progress = next(each["progress"] for each in status_of(processes)["envoys"] if each["name"] == envoy)
        return progress and progress["state"] == state

    wait_for(current)


def test_a_login_needs_a_token_that_is_good_once_and_shows_what_there_is(tab, federation, certificates, capsys):
    where = ["--director", f"127.0.0.1:{federation.port}", "--certificates", str(certificates), "--user", USER]
    assert main(["page", *where]) == 0
    address = capsys.readouterr().out.split()[0]
    page = address.partition("/login")[0]
    with urllib.request.urlopen(f"{page}/healthz") as answer:
        assert answer.read() == b'{"status":"ok"}'
    with urllib.request.urlopen(f"{page}/metrics") as answer:
        assert b'openfl_audio_envoys{state="online"} 2.0\n' in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{page}/api/federation")

    tab.page.goto(f"{page}/experiments")  # without a session it asks for one, and comes back here
    tab.page.get_by_label("Token").fill("wrong")
    tab.page.get_by_role("button", name="Log in").click()
    tab.see("this token is unknown, used or too old: openfl-audio page prints a new one", "[role=alert]")
    assert tab.violations() == []
    tab.page.goto(address)
    tab.see("2 of 2 envoys online")
    tab.see(r"a\s.*free.*points\s*1 to train, 1 to validate", tab.row("Envoys", "a"))
    assert tab.violations() == []
    cookie = next(iter(tab.page.context.cookies()))
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert tab.page.evaluate("document.cookie") == ""

    with Tab(tab.page.context, federation) as second:
        second.page.goto(address)
        second.see("this token is unknown, used or too old")
    tab.page.get_by_role("button", name="Log out").click()
    tab.see("Log in")
    tab.page.goto(page)
    tab.see("Log in")


def test_a_refused_update_a_queue_and_hostile_texts_are_seen_as_they_come(tab, start, federation, tmp_path):
    gate = tmp_path / "gate"

    def train(model, points, device, optimizer, gate=gate, hostile=HOSTILE):
        import time

        from toy.experiment import add_points

        print(hostile)
        while len(points) == 3 and not gate.exists():  # envoy 'b'
            time.sleep(0.02)
        add_points(model, points, device, optimizer)
        if len(points) == 1:
            model[0].bias.data.fill_(float("nan"))
        return {"loss": 0.5}

    def validate(model, points, device, hostile=HOSTILE):
        slope = model[0].weight.item()
        return {"accuracy": -abs(slope - 2), "slope": slope, "accuracy/dog": 0.25, hostile: 1.0}

    name = start(train, rounds=1, validate=validate)
    tab.log_in(USER, f"/experiments/{name}")
    wait_for_envoy(federation, "a", "refused")
    refused = "tensor '0.bias' holds NaN or infinity"
    tab.see(f"refused.*{refused}", tab.row("The open round", "a"))
    tab.see("works", tab.row("The open round", "b"))
    assert tab.page.title() == f"{name} – openfl-audio"
    queued = start(train, rounds=1, envoys=["b"])
    with Tab(tab.page.context, federation) as second:
        second.log_in(USER, f"/experiments/{queued}")
        second.see(f"Waits. Waits: b works on '{name}'", "[data-test=lead]")
    tab.page.get_by_text("Logs", exact=True).click()
    tab.page.get_by_label("Envoy", exact=True).select_option("b")
    tab.see(HOSTILE, "[data-test=log]")

    gate.touch()
    wait_for(lambda: state_of(federation, name) == "finished")
    tab.see("finished", "[data-test=state]")
    tab.page.get_by_label("Round", exact=True).fill("0")
    tab.page.get_by_label("Round", exact=True).press("Enter")
    tab.see(f"a.*refused.*{refused}", ".one-round tbody tr")
    tab.see(f"round 0: a: .*{refused}", "[data-test=sentences]")
    tab.page.get_by_text("accuracy by class (1)").click()
    tab.see(r"dog\s+0\.250", ".classes tr")
    tab.see("round 1: *-1", "[data-test='curve accuracy'] .readout")
    assert tab.page.locator(f'figcaption span:text-is("{HOSTILE}")').count() == 1
    assert tab.page.locator("main img, main script").count() == 0
    assert tab.violations() == []
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="History (CSV)").click()
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [row["round"] for row in rows] == ["0", "1"]
    assert [float(row["slope"]) for row in rows] == [0, 3]
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="Model: last").click()
    assert load(download.value.path().read_bytes())["0.weight"].item() == 3


def test_people_see_and_steer_what_their_roles_and_ownership_let_them(tab, start, federation, tmp_path):
    name = start(held_at(tmp_path / "gate", slope=0), rounds=1, participation=None)
    tab.log_in("colleague", f"/experiments/{name}")
    tab.see(f"user 'colleague' has no experiment '{name}'|another user's")
    with Tab(tab.page.context, federation) as monitor:
        monitor.log_in(MONITOR, f"/experiments/{name}")
        monitor.see("works", monitor.row("The open round", "b"))
        assert monitor.page.get_by_role("button", name="Stop", exact=True).count() == 0
        script = """path => fetch(path, {method: "POST", body: "{}", headers: {"Content-Type": "application/json"}})
            .then(answer => answer.status)"""
        assert monitor.page.evaluate(script, f"/api/experiments/{name}/stop") == 403
        forged = script.replace("application/json", "text/plain")
        assert monitor.page.evaluate(forged, f"/api/experiments/{name}/stop") == 403
    assert state_of(federation, name) == "in_progress"

    with Tab(tab.page.context, federation) as owner:
        owner.log_in(USER, f"/experiments/{name}")
        owner.page.get_by_role("button", name="Stop", exact=True).click()
        owner.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        owner.see("in progress", "[data-test=state]")
        owner.press("Stop", "Stop")
        owner.see("stopped", "[data-test=state]")
        assert state_of(federation, name) == "stopped"
        owner.press("Drop envoy a", "Drop")
        owner.see("left.*was dropped by user 'scientist'", owner.row("Members", "a"))
        owner.press("Resume", "Resume")
        owner.see("in progress|pending", "[data-test=state]")
        wait_for_envoy(federation, "b", "works")
        owner.see("works", owner.row("The open round", "b"))
        assert owner.page.locator(owner.row("The open round", "a")).count() == 0
        owner.press("Stop", "Stop")
        owner.see("stopped", "[data-test=state]")
    with Tab(tab.page.context, federation) as operator:
        operator.log_in(OPERATOR, f"/experiments/{name}")
        operator.press("Delete", "Delete")
        operator.page.get_by_role("heading", name="Experiments").wait_for()
        assert operator.page.locator(operator.row("Experiments", name)).count() == 0
    assert state_of(federation, name) is None


def test_an_owner_resumes_an_experiment_to_its_end_and_deletes_it(tab, start, federation, tmp_path):
    gate = tmp_path / "gate"
    name = start(held_at(gate, slope=0), rounds=1, participation=None)
    tab.log_in(USER, f"/experiments/{name}")
    tab.see("works", tab.row("The open round", "b"))
    tab.press("Stop", "Stop")
    tab.see("stopped", "[data-test=state]")
    gate.touch()
    tab.press("Resume", "Resume")
    tab.see("finished", "[data-test=state]", READY_SECONDS)
    assert state_of(federation, name) == "finished"
    tab.press("Delete", "Delete")
    tab.page.get_by_role("heading", name="Experiments").wait_for()
    assert tab.page.locator(tab.row("Experiments", name)).count() == 0
    assert state_of(federation, name) is None


# WCAG 1.4.10: a screen of 1280 pixels at a zoom of 400 % is one of 320.
SCREENS = {
    "a phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "a zoom of 400 %": {"viewport": {"width": 320, "height": 256}, "device_scale_factor": 4},
    "in the dark": {"color_scheme": "dark"},
}


@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_can_be_read_on_a_small_screen_magnified_in_the_dark_and_by_a_screen_reader(
    chromium, finished, federation, screen
):
    name = finished
    with Tab(chromium, federation, **SCREENS[screen]) as tab:
        tab.log_in(USER)
        tab.see("2 of 2 envoys online")
        pages = {"/": "Federation", "/experiments": "Experiments", f"/experiments/{name}": name}
        for path, heading in pages.items():
            tab.page.goto(tab.address + path)
            tab.page.get_by_role("heading", name=heading, level=1).wait_for()
            if path == f"/experiments/{name}":
                tab.see("round 2:", "[data-test='curve accuracy'] .readout")
            check_sight(tab, is_dark=screen == "in the dark")
        assert tab.page.get_by_role("img", name=re.compile("accuracy by round: round 2: .*")).count() == 1
        tab.page.goto(f"{tab.address}/experiments")
        row = tab.page.get_by_role("table", name="Experiments").get_by_role("row", name=name)
        row.get_by_role("progressbar", name=f"rounds of {name} that are done").wait_for()
        tab.page.get_by_role("button", name="Log out").click()
        tab.page.get_by_role("heading", name="Log in").wait_for()
        check_sight(tab, is_dark=screen == "in the dark")


def check_sight(tab, is_dark):
    """Check that a page is as wide as its window, has the colours that are asked for, and no findings of axe-core."""
    wide = tab.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1], f"{tab.page.url} is {wide[0]} pixels wide in a window of {wide[1]}"
    colour = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 3 * 128) == is_dark
    assert tab.violations() == []


def test_an_experiment_is_stopped_with_the_keyboard_alone(tab, start, federation, tmp_path):
    name = start(held_at(tmp_path / "gate", slope=0), rounds=1, participation=None)
    tab.log_in(USER)
    tab.page.goto(tab.address)
    tab.page.get_by_role("link", name=name).first.wait_for()
    keys = tab.page.keyboard
    assert [tabbed(tab) for _ in range(4)] == ["Skip to the content", "Federation", "Experiments", "Log out"]
    tab.page.get_by_role("link", name="Skip to the content").focus()
    keys.press("Enter")
    assert tabbed(tab) == name
    keys.press("Enter")
    tab.see("in progress", "[data-test=state]")
    assert tab.page.evaluate("document.activeElement.id") == "main"
    tab_to(tab, "Stop")
    keys.press("Enter")
    dialog = tab.page.get_by_role("dialog", name=f"Stop experiment '{name}'?")
    dialog.wait_for()
    assert focused(tab) == "Cancel"
    assert tabbed(tab) == "Stop"
    keys.press("Escape")
    dialog.wait_for(state="detached")
    assert (focused(tab), state_of(federation, name)) == ("Stop", "in_progress")
    keys.press("Enter")
    tab_to(tab, "Stop")
    keys.press("Enter")
    tab.see("stopped", "[data-test=state]")
    assert state_of(federation, name) == "stopped"
    tab.page.get_by_role("button", name="Resume", exact=True).wait_for()
    assert focused(tab) == name  # the heading, as the button is gone
    assert tab.page.get_by_role("status").filter(has_text=f"experiment '{name}' is stopped").count() == 1


def focused(tab):
    """Return what the element says that has the focus."""
    return tab.page.evaluate("document.activeElement.textContent").strip()


def tabbed(tab):
    """Press the tabulator, and return what the next element says."""
    tab.page.keyboard.press("Tab")
    return focused(tab)


def tab_to(tab, name, most=40):
    """Press the tabulator until an element says `name`."""
    found = [tabbed(tab)]
    while found[-1] != name and len(found) < most:
        found.append(tabbed(tab))
    assert found[-1] == name, f"the tabulator led to {found}"


def toy_train(model, points, device, optimizer):
    from toy.experiment import add_points

    return add_points(model, points, device, optimizer)


@pytest.mark.slow
def test_a_session_ends_when_its_certificate_expires(chromium, tmp_path):
    folder = tmp_path / "certificates"
    write_certificates(folder, director_hosts=["127.0.0.1"], users=[USER])
    with LocalFederation(tmp_path / "alone", folder, USER, page=True) as processes:
        processes.start_director()
        wait_for(lambda: "the page is at" in processes.log("director").read_text())
        expires = datetime.now(timezone.utc) + timedelta(seconds=20)
        files = issue(load_authority(folder), USER, "user", days=1, now=expires - timedelta(days=1))
        for ending, content in zip(("crt", "key"), files, strict=True):
            (folder / f"{USER}.{ending}").write_bytes(content)
        with Tab(chromium, processes) as tab:
            tab.log_in(USER)
            tab.see("0 of 0 envoys online")
            wait_for(lambda: datetime.now(timezone.utc) > expires)
            tab.see("the certificate of user 'scientist' (has )?expired")
            tab.page.get_by_role("heading", name="Log in").wait_for()
            tab.page.goto(tab.address)
            tab.page.get_by_role("heading", name="Log in").wait_for()


@pytest.mark.slow  # a default run sees a refused update and a queue; these faults take their time by themselves
def test_a_killed_envoy_a_cut_link_and_a_hostile_corpus_are_seen_within_seconds(
    tab, start, federation, tmp_path, record_property
):
    gate = tmp_path / "gate"
    with Proxy(federation.port) as line:
        federation.start_envoy("c", points(2), director_port=line.port, sandbox="off")
        try:
            federation.wait_until_ready(["c"], READY_SECONDS)
            name = start(held_at(gate, slope=0), rounds=1, envoys=("b", "c"))
            tab.log_in(USER, f"/experiments/{name}")
            for envoy in "bc":
                tab.see("works.*train", tab.row("The open round", envoy), seconds=READY_SECONDS)
            line.pull()
            began = time.monotonic()
            tab.see("silent.*no word for", tab.row("The open round", "c"))
            record_property("seconds until a cut link is seen", round(time.monotonic() - began, 1))
            line.plug()

            os.killpg(federation.pid("b"), signal.SIGKILL)
            began = time.monotonic()
            tab.see("offline since", tab.row("The open round", "b"))
            record_property("seconds until a killed envoy is seen", round(time.monotonic() - began, 1))
            tab.go("/")
            tab.page.goto(tab.address)
            tab.see("offline", tab.row("Envoys", "b"))
            with open_as(
                federation, "d", instance="hostile", corpus=HOSTILE, versions=f'{{"x": "{HOSTILE}"}}'
            ) as line_d:
                info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name="d"))
                request = director_pb2.UpdateShardInfoRequest(shard_info=info)
                director_pb2_grpc.DirectorStub(line_d).UpdateShardInfo(request, timeout=60)
                tab.see(re.escape(HOSTILE), tab.row("Envoys", "d"))
            assert tab.page.locator("main img").count() == 0
        finally:
            gate.touch()
            federation.stop("b", "c")
            federation.start_envoy("b", points(ENVOYS["b"]), reports="logs", sandbox="off")
            federation.wait_until_ready(["b"], READY_SECONDS)


@pytest.mark.slow
def test_a_session_ends_with_its_certificate_and_the_page_with_its_director(chromium, tmp_path):
    """The page's process comes again when it is killed, and is not left behind by a director that is."""
    folder = tmp_path / "certificates"
    write_certificates(folder, director_hosts=["127.0.0.1"], envoys=[], users=[USER], operators=[], monitors=[])
    with LocalFederation(tmp_path / "alone", folder, USER, page=True) as processes:
        processes.start_director()
        wait_for(lambda: "the page is at" in processes.log("director").read_text())
        with Tab(chromium, processes) as tab:
            tab.log_in(USER)
            tab.see("0 of 0 envoys online")
            revoke(folder, [USER])
            tab.see("the certificate of user 'scientist' is revoked")
            tab.page.get_by_role("heading", name="Log in").wait_for()
            address = tab.address
        pages = psutil.Process(processes.pid("director")).children()
        assert len(pages) == 1
        pages[0].kill()
        wait_for(lambda: answers(address), seconds=30)
        pages = psutil.Process(processes.pid("director")).children()
        os.killpg(processes.pid("director"), signal.SIGKILL)
        wait_for(lambda: not any(page.is_running() for page in pages), seconds=10)


def answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/healthz", timeout=5) as answer:
        return answer.status == 200
