"""Fixed point: an update's changes as integers that can be summed, and the mean that follows from their sum.

A change d of a site with weight w becomes, with the range R and the largest weight W that all have agreed on, and
S = 2^(bits - 1) - 1,

    q = floor(clip(d, -R, R) / R * (w / W) * S + u)    with u uniform in [0, 1)

so that q has the mean of what is rounded (stochastic rounding), and |q| <= S. The sum of the q of n sites is below 2^31
in absolute value where n * S is, and so is known modulo 2^32. The mean of the changes is sum(q) * R / S * W / sum(w);
its rounding error is less than n * R / S * W / sum(w) and has a standard deviation of at most half of that over
sqrt(n).
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from openfl_audio.errors import UpdateRefusedError
from openfl_audio.privacy.masks import words

# Masked values are words of 32 bits, and so is their sum.
WORD = np.dtype("<u4")
UNIFORM = 2.0**-32
# Numbers that a round has besides tensors (weights, metrics) are words of 64 bits, with so many bits of fraction.
NUMBER_BITS, FRACTION_BITS = 64, 20
# Values that are worked on at a time stay in the processor's cache.
BLOCK = 1 << 16


def steps(bits: int) -> int:
    """Return the largest absolute value of an integer that a change becomes."""
    return int(2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class Rounding:
    """Random numbers for the rounding of one site in one round: a function of seed, round and site.

    A site that trains the same update again rounds it to the same integers.
    """

    key: bytes

    @classmethod
    def of(cls, seed: int, round_number: int, site: str) -> "Rounding":
        """Return the random numbers of a site in a round."""
        return cls(hashlib.sha256(f"openfl-audio rounding\n{seed}\n{round_number}\n{site}\n".encode()).digest())

    def uniform(self, first: int, count: int) -> np.ndarray:
        """Return `count` numbers in [0, 1), float64, those of the values from `first` on."""
        return words(self.key, WORD.str, first, count) * UNIFORM


def encode(
    change: np.ndarray,
    value_range: float,
    share: float,
    bits: int,
    rounding: Rounding,
    first: int = 0,
    into: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Return the integers that `change`, flat and floating, becomes, as words, and how many values were clipped.

    `share` is the site's weight over the largest one, from 0 to 1, and `first` the place of the first value in the
    whole update, by which random numbers are drawn. The words are written `into` memory for them, where there is some.
    A `change` that is float64 is overwritten. Raises UpdateRefusedError for NaN: a worker can write to its update also
    after it was looked at.
    """
    encoded = np.empty(len(change), WORD) if into is None else into
    clipped, scale = 0, share * steps(bits) / value_range
    for start in range(0, len(change), BLOCK):
        block = change[start : start + BLOCK].astype(np.float64, copy=False)
        # Hardly ever is there a value to clip, and looking for the largest is faster than clipping all.
        largest = max(block.max(), -block.min())
        if np.isnan(largest):
            raise UpdateRefusedError("a value of the update became NaN while it was encoded")
        if largest > value_range:
            clipped += int(np.count_nonzero(np.abs(block) > value_range))
            np.clip(block, -value_range, value_range, out=block)
        block *= scale
        block += rounding.uniform(first + start, len(block))
        np.floor(block, out=block)
        encoded.view("<i4")[start : start + BLOCK] = block
    return encoded, clipped


def decode(total: np.ndarray, value_range: float, mean_share: float, bits: int) -> np.ndarray:
    """Return the mean change, float64, from the sum of what sites have encoded, words.

    `mean_share` is the sum of the sites' weights over the largest weight.
    """
    return total.view("<i4").astype(np.float64) * (value_range / steps(bits) / mean_share)


def encode_number(value: float, sites: int) -> int:
    """Return a number as an integer modulo 2^NUMBER_BITS, rounded to FRACTION_BITS.

    Raises ValueError for one with which a sum over so many `sites` might not be known.
    """
    largest = 2.0 ** (NUMBER_BITS - 1 - FRACTION_BITS) / sites
    if not abs(value) < largest:
        raise ValueError(f"{value:g} is beyond {largest:g}, and cannot be summed over {sites} sites")
    return round(value * 2**FRACTION_BITS) % 2**NUMBER_BITS


def decode_number(total: int) -> float:
    """Return the sum of what `encode_number` has made integers of, from the sum of these integers."""
    total %= 2**NUMBER_BITS
    return (total - 2**NUMBER_BITS if total >= 2 ** (NUMBER_BITS - 1) else total) / 2**FRACTION_BITS
