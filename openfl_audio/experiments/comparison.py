"""Runs of `train.py` side by side: each in a process and a folder of its own, and what they came to as a table."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[2] / "scripts" / "train.py"


def train(workload: str, arguments: Sequence[str], data: Path, out: Path) -> dict[str, Any]:
    """Run `train.py` into `out`, or resume it there, and return what its `result.json` holds.

    Raises CalledProcessError if it fails; what it printed says why.
    """
    print(f"==> {out.name}: {workload} {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(TRAIN), workload, *arguments, "--data", str(data), "--out", str(out)]
    subprocess.run(command, check=True)
    return json.loads((out / "result.json").read_text())


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    >>> print(markdown(["run", "seconds"], [["alone", "3"]]))
    | run | seconds |
    | --- | --- |
    | alone | 3 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
