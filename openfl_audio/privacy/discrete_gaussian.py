"""Discrete Gaussian noise, drawn exactly: integers x with a probability in proportion to exp(-x^2 / (2 s^2)).

The deviation s is 2^20 for everybody, so that a choice is a matter of bits. As in Canonne, Kamath & Steinke ("The
discrete Gaussian for differential privacy", arXiv 2004.00010) candidates of an easy distribution are taken or thrown
away: y = v * s + u, with v counted off coin flips, u of 20 random bits, and a sign, is taken with the probability

    exp((s^2 - y^2) / (2 s^2)) * 2^(v - 1)

which a random number of 64 bits decides. Where it is too near to the probability for floating point to tell, numbers of
as many digits as it takes do, and further bits: no rounding moves a choice, whatever the processor. All coins that v is
counted off come from 43 bits; a larger v has a probability below 10^-390.

The noise is an integer, so that its last bits tell nothing (Mironov, CCS 2012). NumPy's generators are neither secret
nor exact. OpenDP's sampler is both, but draws value by value, and its noise cannot be made to repeat for tests.
"""

from decimal import Decimal, localcontext

import numpy as np

from openfl_audio.privacy.noise import Noise

DEVIATION_BITS = 20
DEVIATION = 1 << DEVIATION_BITS
COIN_BITS = 43
# NumPy's exponential is right to 2^-50 or better: within this much nothing is decided by it.
DOUBT = 2.0**-44
# About 52 % of the candidates are taken.
CANDIDATES = 1.98


def discrete_gaussian(noise: Noise, count: int) -> np.ndarray:
    """Return `count` integers of mean 0 and standard deviation DEVIATION, int64."""
    values = np.empty(count, np.int64)
    done = 0
    while done < count:
        taken = _taken(noise, int(CANDIDATES * (count - done)) + 64)[: count - done]
        values[done : done + len(taken)] = taken
        done += len(taken)
    return values


def _taken(noise: Noise, number: int) -> np.ndarray:
    """Return those of so many candidates that are taken, in their order."""
    drawn, chances = np.split(noise.words(2 * number), 2)
    coins = (drawn >> np.uint64(64 - COIN_BITS)).astype(np.float64)
    # The exponent of a floating number says where its first bit is, and so how many coins before it fell on 0.
    times = COIN_BITS - np.frexp(coins)[1].astype(np.int64)
    sizes = (times << DEVIATION_BITS) + (drawn & np.uint64(DEVIATION - 1)).astype(np.int64)
    is_negative = (drawn >> np.uint64(DEVIATION_BITS) & np.uint64(1)).astype(bool)
    exponents = DEVIATION**2 - sizes**2
    probabilities = np.ldexp(np.exp(exponents * 2.0 ** (-2 * DEVIATION_BITS - 1)), times - 1)
    margins = probabilities - chances * 2.0**-64
    is_taken = margins > 0
    for place in np.flatnonzero(np.abs(margins) < DOUBT):
        is_taken[place] = _is_below(int(chances[place]), int(exponents[place]), int(times[place]), noise)
    is_taken &= (sizes > 0) | ~is_negative  # or 0 would come twice as often
    return np.where(is_negative, -sizes, sizes)[is_taken]


def _is_below(chance: int, exponent: int, times: int, noise: Noise) -> bool:
    """Tell whether a random number, whose first 64 bits are `chance`, is below exp(exponent / (2 s^2)) * 2^(times - 1).

    It gets as many further bits as that takes.
    """
    bits = 64
    while True:
        with localcontext() as context:
            context.prec = bits
            bound = (Decimal(exponent) / 2 ** (2 * DEVIATION_BITS + 1)).exp() * Decimal(2) ** (times - 1 + bits)
            # The number is from `chance` to `chance` + 1 in units of its last bit, and the bound is right to 10^-9 or
            # better, as it has `bits` decimal digits, and 0.31 * `bits` of them before the point.
            if chance + 1 <= bound - Decimal("1e-9"):
                return True
            if chance >= bound + Decimal("1e-9"):
                return False
        chance = chance << 64 | int(noise.words(1)[0])
        bits += 64
