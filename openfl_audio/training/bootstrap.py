"""Bootstrap intervals: whole groups are drawn again, as the clips of one speaker or site are not independent."""

from collections.abc import Sequence

import numpy as np

DRAWS = 1000
CONFIDENCE = 95.0


def bootstrap_interval(sums: Sequence[float], sizes: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean, sum(sums) / sum(sizes), over groups that are drawn again.

    Each of the draws takes as many groups as there are, with repetition (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).

    Args:
        sums: of the values of each group.
        sizes: number of values of each group.
        seed: of the draws.

    Raises:
        ValueError: there are fewer than two groups: nothing tells how much they differ.

    >>> bootstrap_interval([2, 2, 2], [4, 4, 4])
    (0.5, 0.5)
    """
    number = len(sums)
    if number < 2:
        raise ValueError(f"{number} groups: an interval needs two of them")
    times = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=DRAWS)
    means = times @ np.asarray(sums, dtype=float) / (times @ np.asarray(sizes, dtype=float))
    low, high = np.percentile(means, [50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2])
    return float(low), float(high)
