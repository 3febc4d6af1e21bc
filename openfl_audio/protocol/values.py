"""Values of updates and models, as flat arrays: how far apart they are, and whether they are numbers at all."""

import math
from collections.abc import Iterable

import numpy as np

from openfl_audio.errors import NotFiniteError
from openfl_audio.protocol.tensors import Tensors

# Columns of all updates that a norm and the geometric median take at a time; ten updates are 5 MB in float64.
BLOCK = 1 << 16
# Values further out than this would overflow in sums and squares of float32. No weight of a network comes near it.
LARGEST_VALUE = 1e15


def clipped(current: np.ndarray, update: np.ndarray, scale: float) -> np.ndarray:
    """Return current + scale * (update - current) in float64; at scale 1 `update` itself, without a copy."""
    if scale == 1:
        return update
    moved = np.subtract(update, current, dtype=np.float64)
    moved *= scale
    moved += current
    return moved


def distance(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the Euclidean norm of update - current over all `pairs` of current and update, flat and of one length.

    The result depends neither on the order of the pairs nor on how they are cut into pieces, as long as these begin at
    multiples of BLOCK items: blocks are summed by themselves, and their sums exactly. A dot product would not do, as
    its last bits depend on the number of threads.
    """
    squares = []
    for current, update in pairs:
        for start in range(0, len(current), BLOCK):
            block = slice(start, start + BLOCK)
            change = np.subtract(update[block], current[block], dtype=np.float64)
            squares.append(float(np.square(change, out=change).sum()))
    return math.sqrt(math.fsum(squares))


def magnitude(values: np.ndarray) -> float:
    """Return a number that no value of `values`, flat and floating, exceeds; NaN or infinity if one of them is.

    It is their length, or the largest of them where that overflows.
    """
    # The squares' sum is finite only if all values are, and takes one pass. It may also overflow: then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float32) if values.dtype == np.float16 else values
        squares = float(np.dot(wide, wide))
        return math.sqrt(squares) if math.isfinite(squares) else float(np.abs(wide).max())


def is_finite(values: np.ndarray) -> bool:
    """Tell whether all of `values`, flat and floating, are numbers."""
    return math.isfinite(magnitude(values))


def is_too_large(values: np.ndarray, current: np.ndarray) -> bool:
    """Tell whether one of `values` is beyond LARGEST_VALUE.

    A value that is the global model's own, as that of a constant may be, does not count.
    """
    return bool(((np.abs(values) > LARGEST_VALUE) & (values != current.astype(values.dtype))).any())


def narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `values`, flat, of the next global model in its own type.

    Raises NotFiniteError if one of them does not fit.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(dtype, copy=False)
    if narrow.dtype.kind == "f" and not is_finite(narrow):
        raise NotFiniteError(
            "the next global model, or its server optimizer's state, would hold NaN or infinity although every update "
            "is finite: lower the server optimizer's learning rate"
        )
    return narrow


def are_finite(tensors: Tensors) -> bool:
    """Tell whether all floating tensors hold nothing but numbers, whatever their shapes."""
    return all(is_finite(tensor.reshape(-1)) for tensor in tensors.values() if tensor.dtype.kind == "f")
