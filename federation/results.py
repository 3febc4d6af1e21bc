"""What a run leaves behind besides its model."""

import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from federation.files import write_whole

LIBRARIES = ("openfl", "torch", "torchaudio", "transformers", "datasets", "numpy")


def write_result(path: Path, **values: Any) -> None:
    """Write `values` and the versions they stand on as JSON."""
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    write_json(path, {**values, "versions": versions})


def write_json(path: Path, values: Any) -> None:
    """Complete or not at all."""
    _write(path, json.dumps(values, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A line a record, complete or not at all."""
    _write(path, "".join(json.dumps(record) + "\n" for record in records))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode())
