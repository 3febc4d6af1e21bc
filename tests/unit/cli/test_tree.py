"""The tree of commands: their help, their examples, how they end, and what they load."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from openfl_audio.cli import main as tree
from openfl_audio.cli.main import TREE, create_parser, load_command, main, parse
from openfl_audio.cli.options import Command, argument, option
from openfl_audio.errors import OpenFLAudioError

MAX_LINES, MAX_COLUMNS = 48, 100
HEAVY = {"torch", "transformers", "pandas", "sklearn", "grpc", "openfl"}


def commands(members: dict[str, Any] = TREE[1], words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, content in members.items():
        if isinstance(content, tuple):
            yield from commands(content[1], (*words, name))
        else:
            yield (*words, name)


def groups(members: dict[str, Any] = TREE[1], words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, content in members.items():
        if isinstance(content, tuple):
            yield from groups(content[1], (*words, name))


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("words", [*commands(), *groups()], ids=" ".join)
@pytest.mark.parametrize("columns", [80, 200])
def test_the_help_fits_a_screen(words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(words, capsys)
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines"
    assert max(map(len, lines)) <= MAX_COLUMNS
    assert lines[0].startswith(f"usage: {' '.join(('openfl-audio', *words))} ")


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_the_help_ends_in_an_example_that_is_a_call_of_the_command(words, capsys):
    example = "\n".join(help_of(words, capsys)).partition("\nexample:\n")[2]
    program, *arguments = shlex.split(example.replace("\\\n", " "))
    assert program == "openfl-audio"
    assert tuple(arguments[: len(words)]) == words
    command, prog = parse(arguments)
    assert prog == " ".join(("openfl-audio", *words))
    assert isinstance(command, Command)


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_every_option_says_what_it_is(words):
    parser = create_parser(None)
    for word in words:
        [members] = [
            action for action in parser._actions if hasattr(action, "choices") and action.dest == "==SUPPRESS=="
        ]
        parser = members.choices[word]
    for action in parser._actions:
        assert action.help, f"{action.option_strings or action.dest} has no help"


def test_a_command_is_listed_with_its_group(capsys):
    listed = "\n".join(help_of((), capsys))
    for name in TREE[1]:
        assert f"\n    {name} " in listed


def test_help_loads_nothing_heavy_and_a_command_only_its_own_module():
    every = [" ".join([*words, "--help"]) for words in (*commands(), *groups()) if words != ("train",)]
    code = (
        "import contextlib, io, sys; from openfl_audio.cli.main import parse\n"
        f"for line in {every!r}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): parse(line.split())\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    assert run_python(code) == "[]\n"
    code = (
        "import sys; from openfl_audio.cli.main import parse; parse(['envoys'])\n"
        "print(sorted(name for name in sys.modules if name.startswith('openfl_audio.cli.')))\n"
    )
    own = [f"openfl_audio.cli.{name}" for name in ("connected", "main", "options", "status")]
    assert run_python(code) == f"{own}\n"


def test_the_help_of_train_does_not_load_torch():
    code = (
        "import contextlib, sys; from openfl_audio.cli.main import parse\n"
        "with contextlib.suppress(SystemExit): parse(['train', '--help'])\n"
        "print('torch' in sys.modules)\n"
    )
    assert run_python(code).endswith("\nFalse\n")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


class Sums(Command):
    """Add numbers.

    They are whole.
    """

    example: ClassVar[str] = "openfl-audio sums one 1 2"
    resumes: ClassVar[bool] = True

    name: str = argument("name of the sum")
    numbers: list[int] = option("what is added", metavar="N")
    times: int = option("how often", 1, ge=1)
    fail_with: str | None = option("how it ends", None)

    def run(self) -> int | None:
        if self.fail_with == "interrupt":
            raise KeyboardInterrupt
        if self.fail_with == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.fail_with == "disk":
            raise OSError(28, "No space left on device", "sum.txt")
        if self.fail_with:
            raise OpenFLAudioError(self.fail_with)
        print(self.name, sum(self.numbers) * self.times)
        return None


@pytest.fixture
def sums(monkeypatch) -> None:
    """A tree with one command in a group."""
    monkeypatch.setattr(tree, "TREE", ("Count.", {"count": ("Count things.", {"sums": "here.Sums"})}))
    monkeypatch.setattr(tree, "load_command", lambda path: {"here.Sums": Sums}[path])


@pytest.mark.usefixtures("sums")
def test_values_are_those_of_the_fields(capsys):
    assert main(["count", "sums", "one", "--numbers", "1", "-2", "--numbers", "5", "--times", "2"]) == 0
    assert capsys.readouterr() == ("one 8\n", "")


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("count sums", "openfl-audio count sums: the following arguments are required: NAME, --numbers"),
        ("count sums one --numbers 1 --time 2", "openfl-audio count sums: unrecognized arguments: --time 2"),
        (
            "count sums one --numbers 1 --times 0",
            "openfl-audio count sums: '--times' is '0': input should be greater than or equal to 1",
        ),
        (
            "count sums one --numbers 1 x",
            "openfl-audio count sums: '--numbers' is 'x': input should be a valid integer",
        ),
        ("count", "openfl-audio count: the following arguments are required: COMMAND"),
        ("cuont sums", "openfl-audio: argument COMMAND: invalid choice: 'cuont' (choose from"),
    ],
)
def test_bad_use_is_one_sentence_that_names_the_help(line, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(sentence)
    assert printed.err.endswith(f" (see {sentence.partition(':')[0]} --help)\n")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize(
    ("fail_with", "status", "sentence"),
    [
        ("no luck", 1, "no luck"),
        ("disk", 1, "[Errno 28] No space left on device: 'sum.txt'; the same command resumes it"),
        ("interrupt", 130, "interrupted; the same command resumes it"),
        ("terminate", 143, "terminated"),
    ],
)
def test_every_command_ends_in_one_place(fail_with, status, sentence, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["count", "sums", "one", "--numbers", "1", "--fail-with", fail_with]) == status
    assert capsys.readouterr() == ("", f"openfl-audio count sums: {sentence}\n")
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_classes_of_the_tree_are_commands():
    paths = list(walk(TREE[1]))
    assert all(issubclass(load_command(path), Command) for path in paths)
    assert len(set(paths)) == len(paths)


def walk(members: dict[str, Any]) -> Iterator[str]:
    for content in members.values():
        if isinstance(content, tuple):
            yield from walk(content[1])
        else:
            yield content
