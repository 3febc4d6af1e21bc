"""Fixtures for tests of several folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.training import half_precision

HALF = (torch.bfloat16, torch.float16)
SHOWN_CHARACTERS = 4000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show with a failed test what the processes of its federations have printed."""
    report = yield
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        for folder in [value.folder for value in values if isinstance(value, LocalFederation)]:
            report.sections += [
                (f"end of {log.relative_to(folder)}", _end_of(log)) for log in sorted(folder.rglob("*.log"))
            ]
    return report


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-SHOWN_CHARACTERS:]


@pytest.fixture
def wrong_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this CPU compute every grouped convolution of 8 channels a group wrongly in half precision, as some do."""
    right = F.conv1d

    def conv1d(inputs, weight, *arguments, **named):
        autocasts = torch.is_autocast_enabled("cpu") or inputs.dtype in HALF
        wrong = autocasts and inputs.shape[-2] != weight.shape[1] == 8
        # The kernel backwards: output and both gradients are those of another convolution.
        return right(inputs, weight.flip(-1) if wrong else weight, *arguments, **named)

    monkeypatch.setattr(F, "conv1d", conv1d)
    half_precision.is_right.cache_clear()
    yield
    half_precision.is_right.cache_clear()
