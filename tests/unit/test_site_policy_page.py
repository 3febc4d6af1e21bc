"""The commands and settings of docs/site-policy.md are ones that are taken."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from openfl_audio.cli.main import parse
from openfl_audio.config import load_settings
from openfl_audio.envoy.approval import ApprovedList
from openfl_audio.envoy.settings import EnvoySettings

PAGE = (Path(__file__).parents[2] / "docs" / "site-policy.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^openfl-audio .+$", PAGE, re.MULTILINE)
SETTINGS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def test_the_page_has_a_review_session():
    assert [command.split()[1] for command in COMMANDS] == ["review", "review", "approve", "reject"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_taken(command):
    parse(shlex.split(command)[1:])


def test_the_settings_of_the_page_are_taken(tmp_path):
    known = {"director_host": "127.0.0.1", "work_dir": str(tmp_path)}
    for settings in SETTINGS:
        if "params" in settings:
            EnvoySettings.model_validate(known | settings["params"], context={"folder": tmp_path})
        else:
            (tmp_path / "approved.yaml").write_text(yaml.safe_dump(settings))
            assert load_settings(tmp_path / "approved.yaml", ApprovedList).bundles
