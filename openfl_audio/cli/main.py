"""The tree of the command openfl-audio, and the one place where each of its commands ends.

A command is loaded when it is called, and its module when the help of a group lists it: none of them imports torch
before it runs, and director and envoy never do.
"""

import argparse
import inspect
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from importlib.metadata import version
from types import FrameType
from typing import Any, NoReturn

from openfl_audio.cli.options import Command, read_options
from openfl_audio.errors import OpenFLAudioError

PROGRAM = "openfl-audio"
# A group has a sentence and its members, a command the module in this package and its class.
Group = tuple[str, dict[str, Any]]
TREE: Group = (
    "Federated learning for audio: run a federation, prepare corpora, train models, compare them.",
    {
        "director": "director.Director",
        "envoy": "envoy.Envoy",
        "page": "page.Page",
        "check": (
            "Look at settings before something runs.",
            {"director": "director.CheckDirector", "envoy": "envoy.CheckEnvoy"},
        ),
        "experiments": "status.Experiments",
        "show": "steering.Show",
        "watch": "steering.Watch",
        "logs": "steering.Logs",
        "stop": "steering.Stop",
        "resume": "steering.Resume",
        "drop": "steering.Drop",
        "delete": "steering.Delete",
        "fetch": "steering.Fetch",
        "export": "export.Export",
        "envoys": "status.Envoys",
        "review": "review.Review",
        "approve": "review.Approve",
        "reject": "review.Reject",
        "personal": "personal.Personal",
        "privacy": "privacy.Privacy",
        "certificates": (
            "Make, request, sign and revoke certificates.",
            {
                "make": "certificates.Make",
                "request": "certificates.Request",
                "sign": "certificates.Sign",
                "revoke": "certificates.Revoke",
            },
        ),
        "audit": (
            "Look into the record of a director or an envoy.",
            {"verify": "audit.Verify", "show": "audit.ShowRecord", "report": "audit.ReportRecord"},
        ),
        "data": (
            "Download, make, prepare and check corpora.",
            {
                "check": "data.Check",
                "download": "data.Download",
                "make": (
                    "Make a small synthetic corpus in the layout of a published one.",
                    {
                        "speech-commands": "data.MakeSpeechCommands",
                        "librispeech": "data.MakeLibrispeech",
                        "fsd50k": "data.MakeFsd50k",
                    },
                ),
                "prepare": (
                    "Prepare a corpus for clients.",
                    {
                        "fsd50k": "data.PrepareFsd50k",
                        "librispeech": "data.PrepareLibrispeech",
                        "librifsd50k": "data.PrepareLibrifsd50k",
                        "fedwham": "data.PrepareFedwham",
                        "hubert-codebook": "data.PrepareHubertCodebook",
                        "hubert-targets": "data.PrepareHubertTargets",
                    },
                ),
            },
        ),
        "train": "train.Train",
        "tune": "tune.Tune",
        "compare": "compare.Compare",
        "compare-codebooks": "compare.CompareCodebooks",
        "predict": "predict.Predict",
        "enhance": "predict.Enhance",
        "onnx": "predict.Onnx",
        "demo": "demo.Demo",
    },
)
MAX_WIDTH = 100
USAGE_WIDTH = 72  # beside the word usage
EXAMPLE = "example:"
# A table in a docstring is indented.
TABLE = "  "
BAD_USE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and which takes no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USE, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from openfl_audio.cli.completion import completion_script

        print(completion_script(create_parser(None), values))
        parser.exit()


class _PrintSettings(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from openfl_audio.cli.settings_help import settings_lines

        kind: type[Command] = parser.get_default("command")
        try:
            settings = kind.settings_class(vars(namespace))
        except OpenFLAudioError as error:
            parser.error(str(error))
        print("\n".join(settings_lines(settings, _width())))
        parser.exit()


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=_width())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph if paragraph.startswith((EXAMPLE, TABLE)) else "\n".join(self._split_lines(paragraph, width))
            for paragraph in paragraphs
        )

    def format_help(self) -> str:
        # argparse forgets that the commands of a group are indented, and puts the help of the longest below it.
        self._action_max_length += 2
        return super().format_help()


def _width() -> int:
    return min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, those of the process by default, and return its exit status."""
    command, prog = parse(sys.argv[1:] if arguments is None else arguments)
    # A terminated command must stop the processes that it started, as one that is interrupted does.
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return command.run() or 0
    except _Terminated:
        return _end(prog, "terminated", TERMINATED)
    except KeyboardInterrupt:
        return _end(prog, "interrupted; the same command resumes it" if command.resumes else "interrupted", INTERRUPTED)
    except (OSError, BrokenProcessPool) as error:
        return _end(prog, f"{error}; the same command resumes it" if command.resumes else str(error), FAILED)
    except OpenFLAudioError as error:
        return _end(prog, str(error), FAILED)
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(arguments: Sequence[str]) -> tuple[Command, str]:
    """Return the command that `arguments` name, with its options, and its name for messages.

    Ends the process with a sentence for bad use, and after --help and --version.
    """
    values, unknown = create_parser(arguments).parse_known_args(list(arguments))
    options = vars(values)
    parser: Parser = options.pop("parser")
    kind: type[Command] = options.pop("command")
    if unknown and not kind.passes_on:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return read_options(kind, options | ({"passed_on": unknown} if unknown else {})), parser.prog
    except ValueError as error:
        parser.error(str(error))


def create_parser(arguments: Sequence[str] | None) -> argparse.ArgumentParser:
    """Return the parser of the tree, in which the command that `arguments` name has its options; with None all have."""
    parser = Parser(prog=PROGRAM, description=TREE[0])
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version(PROGRAM)}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        default=argparse.SUPPRESS,
        metavar="SHELL",
        choices=("bash", "zsh"),
        help="print a script that completes commands and options in bash or zsh, and end",
    )
    _add_members(parser, TREE[1], arguments)
    return parser


def _add_members(parser: argparse.ArgumentParser, members: dict[str, Any], arguments: Sequence[str] | None) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    name, *others = arguments or [""]
    for member, content in members.items():
        below = None if arguments is None else others
        if name in members and member != name:
            continue
        if isinstance(content, tuple):
            group = commands.add_parser(member, help=_summary(content[0]), description=content[0])
            _add_members(group, content[1], below)
            continue
        kind = load_command(content)
        text = inspect.cleandoc(str(kind.__doc__))
        command = commands.add_parser(
            member, help=_summary(text), description=text, epilog=f"{EXAMPLE}\n  {kind.example}"
        )
        command.set_defaults(command=kind, parser=command)
        if arguments is None or member == name:
            kind.add_options(command)
            if kind.reads_settings:
                text = "list the settings that the file may have, and end"
                command.add_argument(
                    "--help-settings", action=_PrintSettings, nargs=0, default=argparse.SUPPRESS, help=text
                )
            command.usage = _usage(command)


def load_command(path: str) -> type[Command]:
    """Return the class of a command by its place in the tree: "module.Class"."""
    module, _, name = path.partition(".")
    return getattr(import_module(f"openfl_audio.cli.{module}"), name)


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage with what is required; the help lists the rest."""
    parts = [parser.prog.replace("%", "%%")]
    for action in parser._actions:
        if not action.option_strings:
            several = f"{action.metavar}{' ...' if action.nargs else ''}"
            parts.append(several if action.required else f"[{several}]")
        elif action.required:
            parts.append(f"{action.option_strings[-1]} {action.metavar}")
    return textwrap.fill(" ".join([*parts, "[OPTIONS]"]), USAGE_WIDTH, subsequent_indent=" " * 6)


def _summary(text: str) -> str:
    """Return the first sentence as argparse lists it: without its full stop."""
    line = text.splitlines()[0].rstrip(".")
    return line[0].lower() + line[1:]


class _Terminated(BaseException):
    """The process got SIGTERM; not an Exception, as nothing on the way may take it for a fault."""


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _end(prog: str, sentence: str, status: int) -> int:
    print(f"{prog}: {sentence}", file=sys.stderr)
    return status
