"""Commands of the pages as they are printed, without running them: that each is one, with options and settings."""

import re
import shlex
from argparse import _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from benchmarks import modes
from openfl_audio.cli.compare import Compare, check_train
from openfl_audio.cli.main import create_parser, parse
from openfl_audio.cli.train import Train
from openfl_audio.cli.tune import Tune
from openfl_audio.config import load_settings
from openfl_audio.experiments.comparison import Comparison, train_arguments
from openfl_audio.experiments.workloads import find_file, find_workload, workload_names

REPOSITORY = Path(__file__).parents[3]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# A cell of a table that is a command, and one in a sentence, which may leave out what is required.
CELL = re.compile(r"(?<=\| )`(openfl-audio [^`\n]+)`(?= \|)")
MENTION = re.compile(r"`(?:\.venv/bin/)?(openfl-audio [^`\n]+)`")
# Words that stand for something, as in `openfl-audio COMMAND --help` or `openfl-audio watch NAME`.
PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{2,}\b")


# A file that takes the output, and what runs beside the shell.
REDIRECTION = re.compile(r" > \S+( 2>&1)?| &$", re.MULTILINE)


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines of a page's shell blocks, and the commands in its tables."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield from REDIRECTION.sub("", block.replace("\\\n", " ")).splitlines()
    yield from CELL.findall(text)


def words_of(line: str) -> tuple[str, ...]:
    first, *others = shlex.split(line, comments=True) or [""]
    return (first.removeprefix(".venv/bin/"), *others)


TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]
LINES = sorted({words_of(line) for text in TEXTS for line in lines_of(text)} - {("",)})
WHOLE = [words[1:] for words in LINES if words[0] == "openfl-audio" and not PLACEHOLDER.search(" ".join(words))]
MENTIONED = sorted({words_of(code)[1:] for text in TEXTS for code in MENTION.findall(CELL.sub("", text))})
BENCHMARKS = [words[1:] for words in LINES if words[0] == "python" and words[1].startswith("benchmarks/")]
TARGETS = [words[1:] for words in LINES if words[0] == "make" and len(words) > 1]


def test_the_pages_have_commands():
    assert len(WHOLE) > 100
    assert len(MENTIONED) > 20
    assert len(BENCHMARKS) >= 10


@pytest.mark.parametrize("words", MENTIONED, ids=" ".join)
def test_a_command_in_a_sentence_has_names_and_options_that_there_are(words):
    parser, names = create_parser(None), [word for word in words if not word.startswith("-")]
    names = ["train" if name == "COMMAND" else name for name in names]
    while names and (groups := [action for action in parser._actions if isinstance(action, _SubParsersAction)]):
        parser = groups[0].choices[names.pop(0)]
    known = {option for action in parser._actions for option in action.option_strings}
    assert {word.partition("=")[0] for word in words if word.startswith("-") and not word[1:].isdecimal()} <= known


@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_a_command_has_options_and_settings_that_there_are(words):
    command, _ = parse(words)
    if getattr(command, "workload", None) not in workload_names():
        return
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
    if script == "benchmarks/modes.py":
        _, arguments_of_compare = modes.create_parser().parse_known_args(arguments)
        command, _ = parse(["compare", *arguments_of_compare])
        assert cast(Compare, command).plan()
        return
    text = (REPOSITORY / script).read_text() + (REPOSITORY / "benchmarks" / "arguments.py").read_text()
    for option in (word for word in arguments if word.startswith("--")):
        assert f'"{option}"' in text


@pytest.mark.parametrize("words", TARGETS, ids=" ".join)
def test_a_target_of_make_is_there(words):
    assert re.search(rf"^{re.escape(words[0])}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_the_folders_of_the_architecture_are_there():
    page = (REPOSITORY / "docs" / "design" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`[^|]*?/`[^|]*) \|", page, re.MULTILINE)
    folders = [folder for cell in table for folder in re.findall(r"`(\S+/)`", cell)]
    assert "openfl_audio/" in folders
    assert [folder for folder in folders if not (REPOSITORY / folder).is_dir()] == []
