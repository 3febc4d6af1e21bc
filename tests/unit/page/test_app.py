"""Requests of the page that need no director: what is open, what is refused, and the headers of all answers."""

import asyncio

import httpx
import pytest
from starlette.testclient import TestClient

from openfl_audio.page.app import create_app
from openfl_audio.page.link import DirectorLink
from openfl_audio.page.logins import FAILURES_SECONDS, MOST_FAILURES, Attempts

OWN = {"Origin": "http://testserver", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client():
    async def link() -> DirectorLink:
        return DirectorLink("/nowhere")

    app = create_app(asyncio.new_event_loop().run_until_complete(link()), is_encrypted=True, director_pid=1)
    return TestClient(app)


@pytest.mark.parametrize("path", ["/", "/experiments", "/experiments/words", "/login"])
def test_the_page_itself_is_open_and_has_no_data(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.text == client.get("/").text
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/api/session",
        "/api/federation",
        "/api/experiments/words/events",
        "/api/experiments/words/rounds/0",
        "/api/experiments/words/logs/site-a",
        "/api/experiments/words/history.csv",
        "/api/experiments/words/envoys.csv",
        "/api/experiments/words/models/last",
    ],
)
def test_data_need_a_session(client, path):
    answer = client.get(path)
    assert answer.status_code == 401
    assert "openfl-audio page prints an address that logs in" in answer.json()["error"]
    assert answer.headers["Cache-Control"] == "no-store"


STEERING = ["stop", "resume", "delete", "envoys/site-a/drop"]


@pytest.mark.parametrize("path", [f"/api/experiments/words/{action}" for action in STEERING])
def test_nothing_changes_by_get_or_by_another_site(client, path):
    assert client.get(path).status_code == 405
    for headers in ({}, OWN | {"Origin": "http://evil.example"}, OWN | {"Content-Type": "text/plain"}):
        answer = client.post(path, headers=headers, content="{}")
        assert (answer.status_code, answer.json()["error"]) == (403, "the request does not come from this page")
    assert client.post(path, headers=OWN, content="{}").status_code == 401


def test_everything_that_the_page_loads_is_a_file_of_its_own(client):
    page = client.get("/").text
    assert "http:" not in page
    assert "https:" not in page
    for path in ("app.js", "style.css", "uplot/uPlot.min.js", "uplot/uPlot.min.css", "uplot/LICENSE", "icon.svg"):
        assert client.get(f"/static/{path}").status_code == 200
    assert client.get("/static/../app.py").status_code == 404


def test_a_director_that_is_away_is_an_unavailable_page():
    async def ask() -> httpx.Response:
        app = create_app(DirectorLink("/nowhere"), is_encrypted=False, director_pid=1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
            return await client.get("/healthz")

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert "the director does not answer" in answer.json()["error"]


def test_ten_failed_logins_in_a_minute_are_answered_with_a_pause():
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(MOST_FAILURES):
        assert attempts.seconds_to_wait("10.0.0.1") == 0
        attempts.note_failure("10.0.0.1")
        now[0] += 1
    assert attempts.seconds_to_wait("10.0.0.1") == FAILURES_SECONDS - MOST_FAILURES
    assert attempts.seconds_to_wait("10.0.0.2") == 0
    now[0] += FAILURES_SECONDS
    assert attempts.seconds_to_wait("10.0.0.1") == 0
