import os
import subprocess
import sys

import pytest

from openfl_audio.envoy.run_as import find_user
from openfl_audio.errors import SettingsError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@root_only
@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nobody-of-this-name", "this machine has no such user"), ("root", "which is root: name a user that can read")],
)
def test_a_user_that_is_none_to_run_as_is_a_sentence(name, sentence):
    with pytest.raises(SettingsError, match=f"run_as is '{name}'.*{sentence}"):
        find_user(name)


def test_without_root_nobody_runs_as_another_user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SettingsError, match="run_as is 'nobody': only an envoy that root starts can"):
        find_user("nobody")


@root_only
@pytest.mark.process
def test_a_command_runs_as_the_user_with_the_users_groups_and_cannot_go_back():
    code = 'id -u; id -Gn; "$0" -c "import os; os.setuid(0)" 2>&1 | tail -1'
    command = [sys.executable, "-m", "openfl_audio.envoy.run_as", "nobody", "/bin/sh", "-c", code, "/usr/bin/python3"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[:2] == [str(find_user("nobody").pw_uid), "nogroup"]
    assert "Operation not permitted" in said[2] or "not found" in said[2]
