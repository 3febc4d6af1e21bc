"""Shamir's secret sharing over a prime field: Shamir 1979, "How to Share a Secret", CACM 22(11).

A secret is the value at 0 of a random polynomial of degree threshold - 1, and a share is its value at a point above 0.
As many shares as the threshold give the polynomial back, and fewer say nothing of the secret.
"""

import math
import secrets
from collections.abc import Callable, Collection, Mapping

from openfl_audio.errors import SecureAggregationError

# The least prime above 2^256: a secret of 32 bytes is an element of the field.
PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(
    secret: int,
    threshold: int,
    points: Collection[int],
    prime: int = PRIME,
    randbelow: Callable[[int], int] = secrets.randbelow,
) -> dict[int, int]:
    """Return shares of `secret` by point, of which any `threshold` give it back.

    Raises ValueError unless the secret is an element of the field, points are distinct and not 0, and there are as many
    of them as the threshold.
    """
    if not 0 <= secret < prime:
        raise ValueError(f"a secret of {secret.bit_length()} bits is no element of the field")
    if len({*points}) != len(points) or not all(0 < point < prime for point in points):
        raise ValueError(f"points {sorted(points)[:5]}: each is one above 0, and its own")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} of {len(points)} shares")
    coefficients = [secret, *(randbelow(prime) for _ in range(threshold - 1))]
    return {point: _value_at(coefficients, point, prime) for point in points}


def join(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> int:
    """Return the secret of these `shares` by point: Lagrange's interpolation at 0.

    Raises SecureAggregationError for fewer shares than the threshold, and if those beyond it lie on another polynomial:
    then some are false.
    """
    if len(shares) < threshold:
        raise SecureAggregationError(f"{len(shares)} shares of a secret that takes {threshold}")
    points = sorted(shares)
    used, beyond = points[:threshold], points[threshold:]
    # Lagrange's terms without what depends on the place: these have the only inverses, which cost most.
    terms = [
        (point, shares[point] * pow(math.prod(point - other for other in used if other != point), -1, prime))
        for point in used
    ]

    def value_at(place: int) -> int:
        """Return the value of the polynomial through those shares at another place."""
        whole = math.prod(place - point for point in used)
        return sum(term * (whole // (place - point)) for point, term in terms) % prime

    if any(value_at(point) != shares[point] % prime for point in beyond):
        raise SecureAggregationError("shares of one secret contradict each other")
    return value_at(0)


def _value_at(coefficients: list[int], point: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value
