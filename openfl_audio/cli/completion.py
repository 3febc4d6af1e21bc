"""Completion of the command in bash and zsh."""

import argparse

import shtab


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a script for `shell` that completes the commands, options and choices of `parser`, and names of files."""
    _complete_paths(parser)
    return shtab.complete(parser, shell)


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if getattr(action, "is_path", False):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command)
