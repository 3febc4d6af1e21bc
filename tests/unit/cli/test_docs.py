"""The commands of the pages on workloads are calls that the command takes, with settings that there are."""

import re
import shlex
from pathlib import Path

import pytest

from openfl_audio.cli.main import parse
from openfl_audio.cli.train import Train
from openfl_audio.config import load_settings
from openfl_audio.experiments.workloads import find_file, find_workload

PAGES = sorted((Path(__file__).parents[3] / "docs" / "workloads").glob("[a-z]*.md"))
COMMANDS = [
    pytest.param(command, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, command in enumerate(re.findall(r"`(openfl-audio [^`]+)` \|$", page.read_text(), re.M))
]


def test_every_workload_of_a_page_has_commands():
    assert len(PAGES) == 7
    assert len(COMMANDS) > 35


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_is_taken(command):
    parsed, _ = parse(shlex.split(command)[1:])
    if isinstance(parsed, Train):
        workload = find_workload(parsed.workload)
        load_settings(find_file(workload, parsed.config), workload.config_class, parsed.changes())


def test_the_commands_of_the_guide_for_a_raspberry_pi_are_taken():
    page = (PAGES[0].parents[1] / "raspberry-pi.md").read_text()
    commands = re.findall(r"^ *\.venv/bin/openfl-audio (.+)$", page, re.M)
    assert commands
    for command in commands:
        parse(shlex.split(command))
    assert (PAGES[0].parents[2] / "benchmarks" / "small_node.py").exists()
