"""What a run leaves behind besides its model."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("openfl", "torch", "torchaudio", "transformers", "datasets", "numpy")


def write_result(path: Path, **values: Any) -> None:
    """Write `values` and the versions they stand on as JSON."""
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    write_json(path, {**values, "versions": versions})


def write_json(path: Path, values: Any) -> None:
    """Complete or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.rename(path)
