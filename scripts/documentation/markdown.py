"""Pieces of Markdown that the generated parts are made of."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a table; a cell's bars and line ends do not break it.

    >>> print(table(["key", "meaning"], [["`rounds`", "a | b"]]))
    | key | meaning |
    | --- | --- |
    | `rounds` | a \| b |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def code(text: object) -> str:
    """Return `text` as code, or "" for nothing."""
    return f"`{text}`" if str(text) else ""


def _cell(content: object) -> str:
    return " ".join(str(content).split()).replace("|", "\\|")
