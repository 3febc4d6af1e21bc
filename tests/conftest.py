"""Fixtures for tests of several folders."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from openfl_audio.training import half_precision

HALF = (torch.bfloat16, torch.float16)


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
