"""Docstrings begin with a verb or a noun: they are sentences, and no fragments."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = "openfl_audio", "shard_descriptors", "workspaces", "scripts", "benchmarks", "tests"
# Words that begin a relative clause or a condition, which is no sentence.
FRAGMENTS = frozenset(
    {"What", "Who", "Whom", "Whose", "Which", "Whether", "How", "Of", "Those", "That", "Where", "When"}
)


def openings(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each module, class and function of `source` that has a docstring, and its first word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text.split()[0].strip(",.:")


def fragments(source: str) -> list[str]:
    return [name for name, word in openings(source) if word in FRAGMENTS]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_verb_or_a_noun(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): fragments(path.read_text(encoding="utf-8")) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_fragment_is_found():
    assert fragments('"""Shapes."""\ndef f():\n    """Of the targets; None without."""') == ["f"]
