"""Checks that notebooks are stored clean and small: no outputs, no counts, at most 20 code cells, no classes.

    python scripts/check_notebooks.py [NOTEBOOK ...]        # without any: all below notebooks/

Classes belong into the modules of a workspace, where tests reach them; stored outputs swell the history.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
MAX_CODE_CELLS = 20


def faults(path: Path) -> Iterator[str]:
    """One sentence for each thing that is wrong with the notebook at `path`."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"it cannot be read as a notebook ({type(error).__name__}: {error})"
        return
    code_cells = [cell for cell in cells if cell.get("cell_type") == "code"]
    if len(code_cells) > MAX_CODE_CELLS:
        yield f"it has {len(code_cells)} code cells, and {MAX_CODE_CELLS} are the most"
    for number, cell in enumerate(code_cells, start=1):
        if cell.get("outputs"):
            yield f"code cell {number} holds outputs: clear them before storing"
        if cell.get("execution_count") is not None:
            yield f"code cell {number} holds an execution count: clear it before storing"
        yield from (f"code cell {number} {fault}" for fault in _code_faults("".join(cell.get("source", ""))))


def _code_faults(source: str) -> Iterator[str]:
    # Lines for IPython (%matplotlib inline, !ls) are not Python; `pass` keeps the block they may stand in.
    lines = [
        line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip().startswith(("%", "!")) else line
        for line in source.splitlines()
    ]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError as error:
        yield f"is not valid Python: {error.msg}"
        return
    if source.rstrip().endswith(";") and tree.body and "plot_" in ast.unparse(tree.body[-1]):
        yield "ends in a picture that its semicolon hides: take the semicolon away"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield f"defines the class {node.name}: move it to a module of the workspace"


def main(arguments: Sequence[str]) -> int:
    """Check the notebooks that `arguments` name, or all, and return the exit status."""
    paths = [Path(argument) for argument in arguments] or sorted(
        path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    )
    if not paths:
        print(f"error: there is no notebook below {NOTEBOOKS.name}/.", file=sys.stderr)
        return 1
    found = [f"{path}: {fault}." for path in paths for fault in faults(path)]
    print("\n".join(found) if found else f"{len(paths)} notebook(s) clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
