"""The README's commands as they are printed, without running them: that each is one, with options and settings."""

import re
import shlex
from pathlib import Path

import pytest

from openfl_audio.cli.compare import Compare, check_train
from openfl_audio.cli.main import parse
from openfl_audio.cli.train import Train
from openfl_audio.cli.tune import Tune
from openfl_audio.config import load_settings
from openfl_audio.experiments.comparison import Comparison, train_arguments
from openfl_audio.experiments.workloads import find_file, find_workload

REPOSITORY = Path(__file__).parents[2]
LINES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [words[1:] for words in LINES if words and words[0] == ".venv/bin/openfl-audio"]
BENCHMARKS = [words[1:] for words in LINES if words and words[0] == ".venv/bin/python"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_has_options_and_settings_that_there_are(words):
    command, _ = parse(words)
    if isinstance(command, Train):
        load_train_settings(command)
    elif isinstance(command, Tune):
        assert command.search().settings
    elif isinstance(command, Compare):
        rows = Comparison(find_workload(command.workload), command.workload, command.data, command.out).rows()
        for arguments in rows.values():
            line = train_arguments(command.workload, [*arguments, *command.passed_on], command.data, command.out)
            check_train(line)
            load_train_settings(parse(["train", *line])[0])


def load_train_settings(command: Train) -> None:
    workload = find_workload(command.workload)
    load_settings(find_file(workload, command.config), workload.config_class, command.changes())


@pytest.mark.parametrize("words", BENCHMARKS, ids=" ".join)
def test_a_benchmark_is_there_and_has_its_options(words):
    script, *arguments = words
    text = (REPOSITORY / script).read_text()
    for option in (word for word in arguments if word.startswith("--")):
        assert f'"{option}"' in text


def test_the_folders_of_the_readmes_table_are_there():
    table = re.findall(r"^\| (`[^|]*?/`[^|]*) \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    folders = [folder for cell in table for folder in re.findall(r"`(\S+/)`", cell)]
    assert "openfl_audio/" in folders
    assert [folder for folder in folders if not (REPOSITORY / folder).is_dir()] == []
