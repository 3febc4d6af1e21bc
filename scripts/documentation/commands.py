"""Reference of the command line, from its parser."""

import argparse
from collections.abc import Iterator

from openfl_audio.cli.main import EXAMPLE, create_parser
from scripts.documentation.markdown import code, table


def commands() -> str:
    """Return a section for each command with its help, usage, options and example."""
    return "\n\n".join(part for parser in _leaves(create_parser(None)) for part in _describe(parser))


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for member in action.choices.values():
                yield from _leaves(member)
            return
    yield parser


def _describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {parser.prog}"
    yield str(parser.description)
    yield f"```text\n{parser.format_usage().strip()}\n```"
    rows = [(_names(action), (action.help or "") % vars(action)) for action in parser._actions if action.dest != "help"]
    if rows:
        yield table(["option", "meaning"], rows)
    example = str(parser.epilog).removeprefix(EXAMPLE).strip()
    yield f"For example:\n\n```sh\n{example}\n```"


def _names(action: argparse.Action) -> str:
    value = f" {action.metavar}" if action.metavar and action.option_strings else ""
    return code(", ".join(action.option_strings) + value if action.option_strings else action.metavar or action.dest)
