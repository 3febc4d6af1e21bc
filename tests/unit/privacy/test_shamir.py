import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy.shamir import PRIME, join, split


def test_shares_are_those_of_the_published_example() -> None:
    # Wikipedia, "Shamir's secret sharing", finite field arithmetic: 1234 + 166 x + 94 x^2 modulo 1613.
    coefficients = iter([166, 94])
    shares = split(1234, 3, range(1, 7), prime=1613, randbelow=lambda _: next(coefficients))
    assert shares == {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    assert join({2: 329, 4: 176, 5: 1188}, 3, prime=1613) == 1234


def test_prime_is_the_least_above_two_to_the_256() -> None:
    def is_prime(number: int) -> bool:
        """Miller and Rabin's test with 40 bases: wrong with a probability below 4^-40."""
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        draw = random.Random(1)
        for base in (draw.randrange(2, number - 1) for _ in range(40)):
            value = pow(base, odd, number)
            if value in (1, number - 1):
                continue
            for _ in range(twos - 1):
                value = value * value % number
                if value == number - 1:
                    break
            else:
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(2**256 + 1, PRIME, 2))


@given(st.integers(0, 2**256 - 1), st.integers(1, 8), st.integers(0, 4), st.randoms())
def test_any_shares_of_the_threshold_give_the_secret(
    secret: int, threshold: int, more: int, draw: random.Random
) -> None:
    points = draw.sample(range(1, 60), threshold + more)
    shares = split(secret, threshold, points)
    chosen = draw.sample(points, threshold)
    assert join({point: shares[point] for point in chosen}, threshold) == secret
    assert join(shares, threshold) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    # With one share too few, every secret of the field is as possible: each has exactly one last share.
    prime, shares = 31, split(7, 3, [1, 2, 3], prime=31)
    secrets = {join({1: shares[1], 2: shares[2], 3: last}, 3, prime=prime) for last in range(prime)}
    assert secrets == {*range(prime)}


def test_each_single_share_is_uniform() -> None:
    counts = [0] * 11
    for first in range(11):
        counts[split(5, 2, [1, 2, 3], prime=11, randbelow=lambda _, value=first: value)[3]] += 1
    assert counts == [1] * 11


def test_two_polynomials_are_told_apart() -> None:
    one, other = split(1, 3, range(1, 6)), split(2, 3, range(1, 6))
    for points in combinations(range(1, 6), 2):
        mixed = one | {point: other[point] for point in points}
        with pytest.raises(SecureAggregationError, match="shares of one secret contradict each other"):
            join(mixed, 3)
    with pytest.raises(SecureAggregationError, match="2 shares of a secret that takes 3"):
        join({1: one[1], 2: one[2]}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points", "sentence"),
    [
        (PRIME, 2, [1, 2], "257 bits is no element"),
        (1, 2, [0, 1], "each is one above 0"),
        (1, 2, [1, 1], "each is one above 0"),
        (1, 3, [1, 2], "threshold 3 of 2"),
        (1, 0, [1, 2], "threshold 0 of 2"),
    ],
)
def test_impossible_sharing_is_refused(secret: int, threshold: int, points: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        split(secret, threshold, points)
