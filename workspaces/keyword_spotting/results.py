"""What a run leaves behind besides its model."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

LIBRARIES = ("openfl", "torch", "torchaudio", "transformers", "datasets", "numpy")


def class_counts(registry: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Training clips per class (rows) and envoy (columns), as the envoys describe their shards."""
    descriptions = {name: yaml.safe_load(envoy["shard_info"].shard_description) for name, envoy in registry.items()}
    return (
        pd.DataFrame({name: description["train"] for name, description in sorted(descriptions.items())})
        .fillna(0)
        .astype(int)
    )


def write_result(path: Path, **values: Any) -> None:
    """Write `values` and the versions they stand on as JSON, complete or not at all."""
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({**values, "versions": versions}, indent=2) + "\n")
    temporary.rename(path)
