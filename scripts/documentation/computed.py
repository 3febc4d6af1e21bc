"""Tables of numbers that follow from the code alone, and are computed whenever the pages are built."""

import torch

from benchmarks.real_sizes import create
from openfl_audio.node.adapter import transmitted
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.protocol.low_rank import RESIDUAL
from openfl_audio.training.adapters import Lora
from scripts.documentation.markdown import table

MULTIPLIERS = (1, 2, 5, 10)
ROUNDS, DELTA = 50, 1e-5
SIZES = ("whisper-small", "wav2vec2-base")


def epsilons() -> str:
    """Return a table of what so many rounds cost a site that takes part in all of them, by its noise multiplier."""
    costs = [epsilon([Release(multiplier, 1, ROUNDS)], DELTA) for multiplier in MULTIPLIERS]
    rows = [[f"epsilon of {ROUNDS} rounds, at a delta of {DELTA:g}", *(f"{cost:.1f}" for cost in costs)]]
    return table(["noise multiplier", *map(str, MULTIPLIERS)], rows)


def adapter_bytes() -> str:
    """Return a table of the megabytes that a node sends in a round in float32, and fetches where that is more."""
    header = ["MB in a round", "whole", "adapters", "with `freeze_a`", "with `lora_residual`"]
    return table(header, ([name, *_megabytes_of(name)] for name in SIZES))


def _megabytes_of(name: str) -> list[str]:
    kinds = (None, Lora(r=8), Lora(r=8, freeze_a=True), Lora(r=8, residual=True))
    return [_megabytes(name, kind) for kind in kinds]


def _megabytes(name: str, lora: Lora | None) -> str:
    with torch.device("meta"):  # sizes without values
        tensors = transmitted(create(name, lora))
    down = sum(tensor.nbytes for tensor in tensors.values())
    up = sum(tensor.nbytes for tensor_name, tensor in tensors.items() if not tensor_name.endswith(RESIDUAL))
    return f"{up / 1e6:.2f}" + (f" up, {down / 1e6:.1f} down" if down > up else "")
