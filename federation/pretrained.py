"""Pretrained weights that a node should have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.run_settings import SettingsError


class PretrainedWeightsError(SettingsError):
    """Pretrained weights are neither in a folder nor in the hub's cache, and the hub cannot be reached."""


@contextmanager
def explain_missing_weights(pretrained: str | Path | None) -> Iterator[None]:
    """Raise PretrainedWeightsError when transformers does not find `pretrained`."""
    try:
        yield
    except OSError as error:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise PretrainedWeightsError(
            f"no weights for '{pretrained}': it is no folder, not in the cache ({cache}), and the hub did not "
            f"answer. On a connected machine run `hf download {pretrained}` and copy the cache, or give a folder "
            "written by save_pretrained"
        ) from error
