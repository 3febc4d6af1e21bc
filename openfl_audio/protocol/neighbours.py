"""Numbers of neighbours in secure aggregation of many envoys, by the conditions of Bell et al. 2020.

Their paper is "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", ACM CCS. Each of n envoys draws k
others. These and itself hold shares of its secrets, of which t give a secret back, and it has a mask in common with
each envoy that it has drawn, or that has drawn it. With c colluders, whom nobody knows, three events have to be rare:

- An honest envoy has drawn t colluders, who know its secrets then.
- Honest envoys whose updates are summed fall into two groups without a mask in common: each has its own sum known.
- Of the holders of an envoy's shares fewer than t are left when others are lost at random, and the attempt fails.

The first and the last follow from hypergeometric tails, as in the paper. For the second its bound takes losses to be
independent of the graph. A director that breaks the rules says itself who is lost, and knows the graph when it does.
So the one here is for the worst choice of those that are left out. A group Q of q honest envoys is cut off only if each
of its members has t - 1 of its k neighbours among Q and the colluders, as nobody else gives shares of it, and if all
honest envoys outside that have drawn one of Q can be left out. Members draw independently of each other, and of those
outside. The smaller of two groups has at most half of the honest envoys, and the sum over such q, each times the number
of groups of that size, bounds the probability that there is one.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

# Probabilities as powers of two: 2^-40 for an attempt that tells more than a sum, 2^-20 for one that fails though no
# more envoys are lost than it bears.
SECURITY_BITS, CORRECTNESS_BITS = 40, 20


class Neighbours(NamedTuple):
    """Neighbours of each envoy, as numbers.

    Attributes:
        drawn: how many others an envoy draws, k.
        shares: how many shares give a secret back, t. The envoy itself holds one, and each that it has drawn another.
    """

    drawn: int
    shares: int


@lru_cache
def least_neighbours(envoys: int, colluding: int, lost: int, left_out: int) -> Neighbours:
    """Return the fewest neighbours, and then the fewest shares, that keep the three events rare.

    `colluding` of the `envoys` work together with a director that may leave out `left_out` at its choice; `lost` are
    lost at random. Raises ValueError if that is too much for any number of neighbours.
    """
    for drawn in range(2, envoys):
        fewest = None
        for shares in range(drawn, 1, -1):
            if log2_of_too_few_left(envoys, lost, drawn, shares) > -CORRECTNESS_BITS:
                continue
            if not _is_secure(envoys, colluding, left_out, drawn, shares):
                break
            fewest = Neighbours(drawn, shares)
        if fewest:
            return fewest
    raise ValueError(f"{colluding} of {envoys} envoys that collude, and {lost} that are lost, are too many")


def _is_secure(*numbers: int) -> bool:
    # Groups of one are the most likely ones, nearly always; all others are costly to add up.
    first = islice(_log_exposures(*numbers), 2)
    return max(first) <= -SECURITY_BITS * np.log(2) and log2_of_exposure(*numbers) <= -SECURITY_BITS


def log2_of_too_few_left(envoys: int, lost: int, drawn: int, shares: int) -> float:
    """Return a bound of the probability, as its logarithm, that an envoy has too few holders of its shares left.

    An envoy that is lost itself has one fewer, and decides.
    """
    too_many = drawn - shares + 1
    return float(np.log2(envoys) + _log_tail(envoys - 1, lost - 1, drawn, too_many) / np.log(2))


def log2_of_exposure(envoys: int, colluding: int, left_out: int, drawn: int, shares: int) -> float:
    """Return a bound of the probability, as its logarithm, that an attempt tells more than one sum of the honest."""
    return float(np.logaddexp.reduce([*_log_exposures(envoys, colluding, left_out, drawn, shares)]) / np.log(2))


def _log_exposures(envoys: int, colluding: int, left_out: int, drawn: int, shares: int) -> Iterator[float]:
    """Yield bounds that add up: of an envoy that has drawn too many colluders, and of groups cut off, by their size."""
    honest = envoys - colluding
    yield float(np.log(honest) + _log_tail(envoys - 1, colluding, drawn, shares))
    for size in range(1, honest // 2 + 1):
        within = _log_tail(envoys - 1, colluding + size - 1, drawn, shares - 1)
        draws_none = float(_log_choose(envoys - 1 - size, drawn) - _log_choose(envoys - 1, drawn))
        left = min(left_out, honest - 2 * size)  # the other group is no smaller
        yield float(_log_choose(honest, size) + size * within + _log_at_most(honest - size, draws_none, left))


def _log_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Return the logarithm of the probability that at least `least` of `drawn` are marked: hypergeometric."""
    found = np.arange(max(least, 0), min(marked, drawn) + 1)
    ways = _log_choose(marked, found) + _log_choose(population - marked, drawn - found)
    return min(0.0, float(np.logaddexp.reduce(ways, initial=-np.inf) - _log_choose(population, drawn)))


def _log_at_most(trials: int, log_failure: float, most: int) -> float:
    """Return the logarithm of the probability of at most `most` successes, each trial failing with `log_failure`."""
    if most >= trials:
        return 0.0
    if log_failure == -np.inf:
        return -np.inf
    found = np.arange(most + 1)
    log_success = np.log(-np.expm1(log_failure))
    ways = _log_choose(trials, found) + found * log_success + (trials - found) * log_failure
    return min(0.0, float(np.logaddexp.reduce(ways)))


def _log_choose(total: int, chosen: int | np.ndarray) -> np.ndarray:
    """Return the logarithms of binomial coefficients; those of more than there are, or fewer than none, are -inf."""
    chosen = np.asarray(chosen)
    inside = (chosen >= 0) & (chosen <= total)
    among = np.where(inside, chosen, 0)
    logs = _log_factorials(4096 if total < 4096 else total)
    return np.where(inside, logs[total] - logs[among] - logs[total - among], -np.inf)


@lru_cache
def _log_factorials(largest: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])
