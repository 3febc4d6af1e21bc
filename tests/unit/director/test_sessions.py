"""Tokens that are good once and for a while, and sessions that end."""

import pytest

from openfl_audio.config import load_settings
from openfl_audio.director import sessions as module
from openfl_audio.director.page import PageProcess, PageSettings, listen, pair_of
from openfl_audio.director.server import DirectorFile
from openfl_audio.director.sessions import SESSION_SECONDS, TOKEN_SECONDS, Sessions
from openfl_audio.errors import SettingsError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_token_is_good_for_one_login(clock):
    sessions = Sessions(clock)
    token = sessions.invite("ada", "certificate")
    secret = sessions.log_in(token)
    assert secret is not None
    assert sessions.log_in(token) is None
    assert sessions.log_in("") is None
    found = sessions.find(secret)
    assert (found.name, found.certificate, found.ends) == ("ada", "certificate", 1000 + SESSION_SECONDS)
    assert sessions.find(token) is None


def test_a_token_and_a_session_end_by_the_clock_and_a_session_by_a_logout(clock):
    sessions = Sessions(clock)
    token, late = sessions.invite("ada", ""), sessions.invite("ada", "")
    clock.now += TOKEN_SECONDS - 1
    secret, other = sessions.log_in(token), sessions.log_in(sessions.invite("bo", ""))
    clock.now += 2
    assert sessions.log_in(late) is None
    sessions.log_out(other)
    assert sessions.find(other) is None
    assert sessions.find(secret).name == "ada"
    clock.now += SESSION_SECONDS
    assert sessions.find(secret) is None


def test_no_more_than_so_many_tokens_are_kept_and_the_oldest_makes_room(clock, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    sessions = Sessions(clock)
    first, *others = (sessions.invite("ada", "") for _ in range(3))
    assert sessions.log_in(first) is None
    assert all(sessions.log_in(token) for token in others)


def test_another_host_than_loopback_needs_tls(tmp_path):
    assert pair_of(PageSettings(host="::1"), None) == (None, None)
    assert pair_of(PageSettings(host="0.0.0.0"), tmp_path) == (tmp_path / "director.crt", tmp_path / "director.key")
    own = {"certificate": tmp_path / "a.pem", "key": tmp_path / "b.pem"}
    assert pair_of(PageSettings(host="0.0.0.0", **own), None) == (own["certificate"], own["key"])
    with pytest.raises(SettingsError, match=r"page.host is 0.0.0.0: without TLS the page is for this machine only"):
        pair_of(PageSettings(host="0.0.0.0"), None)
    with pytest.raises(SettingsError, match=r"settings.page: give both certificate and key, or neither"):
        pair_of(PageSettings(key=tmp_path / "b.pem"), None)


def test_a_port_that_is_taken_leaves_a_director_without_a_page(caplog):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        page = PageProcess(PageSettings(port=port), None)
        page.close()
    assert page.address == ""
    assert f"no page is served: 127.0.0.1:{port}: Address already in use" in caplog.text


def test_paths_of_the_page_are_relative_to_the_settings(tmp_path):
    path = tmp_path / "director.yaml"
    path.write_text("settings: {runs: runs, page: {certificate: page.pem, key: page.key}}")
    page = load_settings(path, DirectorFile).settings.page
    assert (page.host, page.port, page.certificate) == ("127.0.0.1", 8050, tmp_path / "page.pem")
