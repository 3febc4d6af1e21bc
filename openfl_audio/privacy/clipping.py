"""Bounds of tensors, which a bound on the norm of a whole contribution is divided into.

With C the bound of the whole, and tensors l = 1 ... L of d_l values each, a tensor is scaled down to the norm C_l:

    per_layer        C_l = C / sqrt(L)
    per_dimension    C_l = C * sqrt(d_l / sum(d))

In both cases sum(C_l^2) = C^2, so that the noise that goes with C is the same as for flat clipping, where the whole is
scaled down to C at once. Per layer as in McMahan et al., "Learning differentially private recurrent language models",
arXiv 1710.06963; by dimension as in Pelikan et al., "Enabling differentially private federated learning for speech
recognition", arXiv 2310.00098.
"""

import math
from collections.abc import Sequence
from typing import get_args

from openfl_audio.protocol.privacy import Clipping


def bounds(clip: float, clipping: Clipping, sizes: Sequence[int]) -> list[float] | None:
    """Return the bound of each tensor, of which `sizes` are the numbers of values; None where one is for all.

    Raises ValueError for a bound that is not above 0, or an unknown way to clip.

    >>> bounds(1.0, "per_layer", [3, 1])
    [0.7071067811865475, 0.7071067811865475]
    """
    check_positive(clip=clip)
    if clipping == "flat":
        return None
    if clipping == "per_layer":
        return [clip / math.sqrt(len(sizes))] * len(sizes)
    if clipping == "per_dimension":
        return [clip * math.sqrt(size / sum(sizes)) for size in sizes]
    raise ValueError(f"clipping is {clipping!r}: it should be one of {', '.join(get_args(Clipping))}")


def check_positive(**values: float) -> None:
    """Raise ValueError, naming the first, unless all values are finite and above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}: it should be a number above 0")
