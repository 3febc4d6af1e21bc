"""A rotation that makes the values of a vector alike in size: signs drawn at random, then a Hadamard transform.

It is done in rows of ROW values: y = H (D x) / sqrt(ROW), with D the signs and H Hadamard's matrix. A rotation keeps
norms, and whatever x is, a value of y is above t * |x| / sqrt(ROW) with a probability of at most 2 exp(-t^2 / 2) over
the signs (Hoeffding), which are therefore drawn anew for each round. They are no secret.

In "The distributed discrete Gaussian mechanism for federated learning with secure aggregation" (Kairouz, Liu & Steinke,
arXiv 2102.06387) the whole vector is one row; rows let it be made and undone piece by piece.
"""

import hashlib

import numpy as np

from openfl_audio.privacy.masks import words

# Its root is a power of two, so that dividing by it rounds nothing.
ROW = 4096


class Rotation:
    """The rotation of one round: a function of seed and round."""

    def __init__(self, seed: int, round_number: int) -> None:
        self._key = hashlib.sha256(f"openfl-audio rotation\n{seed}\n{round_number}\n".encode()).digest()

    def turn(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """Return the rotated values, float64, of whole rows that begin at place `first` of the vector."""
        return _hadamard(values * self._signs(first, len(values)))

    def undo(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """Return what `turn` has made `values` of."""
        return _hadamard(values) * self._signs(first, len(values))

    def _signs(self, first: int, count: int) -> np.ndarray:
        bits = np.unpackbits(words(self._key, "u1", first // 8, count // 8))
        return 1.0 - 2.0 * bits


def _hadamard(values: np.ndarray) -> np.ndarray:
    """Return each row of `values`, flat, multiplied by Hadamard's matrix over the root of ROW, its own inverse."""
    rows = values.reshape(-1, ROW)
    for _ in range(ROW.bit_length() - 1):
        # Sums of neighbours come first, then their differences: after log2(ROW) times this is the whole matrix.
        rows = np.concatenate([rows[:, ::2] + rows[:, 1::2], rows[:, ::2] - rows[:, 1::2]], axis=1)
    return rows.reshape(-1) / np.sqrt(ROW)
