"""The command is run as a user runs it: a process of its own, from another folder."""

import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from openfl_audio.protocol.certificates import load_credentials

pytestmark = pytest.mark.process


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openfl_audio.cli", "certificates", "make", "--out", "certificates", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_makes_a_federation_and_adds_an_envoy_later(tmp_path: Path) -> None:
    first = make(tmp_path, "--director", "fl.example.org", "--envoy", "site-a", "site-b", "--user", "ada")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[0] == "wrote certificates/ca.crt"
    assert first.stdout.splitlines()[-1].endswith("ca.key stays here.")

    assert make(tmp_path, "--envoy", "site-c").returncode == 0
    assert make(tmp_path, "--operator", "olga", "--monitor", "max").returncode == 0
    folder = tmp_path / "certificates"
    expected = {
        "director": "director", "site-a": "envoy", "site-b": "envoy", "site-c": "envoy", "ada": "user",
        "olga": "operator", "max": "monitor",
    }  # fmt: skip
    assert {name: load_credentials(folder, name).role for name in expected} == expected
    assert {stat.S_IMODE(key.stat().st_mode) for key in folder.glob("*.key")} == {0o600}


def test_director_without_names_is_reached_locally(tmp_path: Path) -> None:
    assert make(tmp_path, "--director").returncode == 0
    assert load_credentials(tmp_path / "certificates", "director").name == "director"


def test_a_director_that_only_this_machine_reaches_is_told(tmp_path: Path) -> None:
    local = make(tmp_path, "--director").stdout
    assert "director.crt is for localhost, 127.0.0.1, ::1: envoys and notebooks reach the director by one of" in local
    assert "For a director on another machine give its names: --director fl.example.org" in local
    named = make(tmp_path, "--director", "fl.example.org", "[2001:DB8::1]", "--force").stdout
    assert "director.crt is for localhost, 127.0.0.1, ::1, fl.example.org, 2001:db8::1:" in named
    assert "on another machine" not in named
    assert "director.crt" not in make(tmp_path, "--envoy", "site-a").stdout


def test_existing_certificate_is_refused_in_one_sentence_and_replaced_with_force(tmp_path: Path) -> None:
    make(tmp_path, "--envoy", "site-a")
    before = (tmp_path / "certificates" / "site-a.crt").read_bytes()
    again = make(tmp_path, "--envoy", "site-a")
    assert again.returncode == 1
    assert (
        again.stderr == "openfl-audio certificates make: certificates/site-a.crt exists already: --force replaces it.\n"
    )
    assert (tmp_path / "certificates" / "site-a.crt").read_bytes() == before

    assert make(tmp_path, "--envoy", "site-a", "--force").returncode == 0
    assert (tmp_path / "certificates" / "site-a.crt").read_bytes() != before


def test_repeated_option_adds_names(tmp_path: Path) -> None:
    assert make(tmp_path, "--envoy", "site-a", "--envoy", "site-b", "--days", "3").returncode == 0
    assert sorted(path.stem for path in (tmp_path / "certificates").glob("site-*.crt")) == ["site-a", "site-b"]


def test_an_authority_alone_is_made_once(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.returncode == 0
    assert made.stdout.splitlines()[:2] == ["wrote certificates/ca.crt", "wrote certificates/ca.key"]
    result = make(tmp_path)
    assert result.returncode == 1
    assert (
        result.stderr == "openfl-audio certificates make: certificates has an authority already, and there is nothing "
        "to sign: give a director, an envoy, a user, an operator or a monitor.\n"
    )


def test_the_commands_of_the_page_work_one_after_the_other(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/certificates.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        ended = subprocess.run(
            [sys.executable, "-m", "openfl_audio.cli", *shlex.split(command)[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr) == (0, ""), command
        if "sign" in command:
            shutil.copy(tmp_path / "authority/site-a.crt", tmp_path / "site")
    assert load_credentials(tmp_path / "site", "site-a").role == "envoy"
    assert len((tmp_path / "authority/revoked.txt").read_text().splitlines()) == 3  # site-a before and after, scientist


def test_what_cannot_be_signed_is_one_sentence(tmp_path: Path) -> None:
    assert make(tmp_path, "--user", "ada").returncode == 0
    command = [sys.executable, "-m", "openfl_audio.cli", "certificates", "sign", "no.csr", "--role", "envoy"]
    ended = subprocess.run(
        [*command, "--authority", "certificates"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr == "openfl-audio certificates sign: no.csr cannot be read: No such file or directory.\n"
