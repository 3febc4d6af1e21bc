"""Numbers of neighbours: beside those of the paper's authors, and against an adversary that tries everything."""

import math
import random
from collections.abc import Sequence

import pytest
from scipy.stats import hypergeom

from openfl_audio.protocol.neighbours import (
    CORRECTNESS_BITS,
    SECURITY_BITS,
    least_neighbours,
    log2_of_exposure,
    log2_of_too_few_left,
)
from openfl_audio.protocol.secure_aggregation import colluders, dropouts, neighbours, threshold


@pytest.mark.parametrize(
    ("envoys", "colluding", "lost", "degree", "shares"),
    [
        (100, 33, 33, 68, 34), (1000, 330, 330, 286, 150), (100, 5, 33, 28, 6),
        (1000, 50, 330, 72, 24), (100, 33, 5, 34, 29), (1000, 330, 50, 78, 60),
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_authors_for_a_curious_server(
    envoys: int, colluding: int, lost: int, degree: int, shares: int
) -> None:
    # Degrees and thresholds of the implementation of James Bell and others in google-parfait/federated-compute, for
    # the same probabilities (secagg/server/graph_parameter_finder_test.cc). Its graph is a ring with chords, and even.
    found = least_neighbours(envoys, colluding, lost, envoys - threshold(envoys))
    assert abs(found.drawn - degree) <= 2
    assert abs(found.shares - shares) <= 2


@pytest.mark.parametrize(
    ("envoys", "drawn", "shares"), [(51, 22, 13), (60, 25, 14), (100, 40, 22), (200, 63, 35), (300, 75, 42)]
)
def test_numbers_of_neighbours_are_the_least_that_keep_the_bounds(envoys: int, drawn: int, shares: int) -> None:
    assert neighbours(envoys) == (drawn, shares)
    left_out = envoys - threshold(envoys)

    def is_safe(drawn: int, shares: int) -> bool:
        return (
            log2_of_exposure(envoys, colluders(envoys), left_out, drawn, shares) <= -SECURITY_BITS
            and log2_of_too_few_left(envoys, dropouts(envoys), drawn, shares) <= -CORRECTNESS_BITS
        )

    assert is_safe(drawn, shares)
    assert not is_safe(drawn, shares - 1)
    assert not any(is_safe(drawn - 1, fewer) for fewer in range(2, drawn))


@pytest.mark.parametrize("envoys", [53, 64, 77, 90, 120, 150])
def test_numbers_do_not_hang_on_the_last_digits_of_a_logarithm(envoys: int) -> None:
    # All envoys have to come to the same numbers, and their libraries round in their own ways.
    drawn, shares = neighbours(envoys)
    for fewer in (drawn, drawn - 1):
        exposures = [
            log2_of_exposure(envoys, colluders(envoys), envoys - threshold(envoys), fewer, each)
            for each in range(shares - 2, shares + 2)
        ]
        lacks = [log2_of_too_few_left(envoys, dropouts(envoys), fewer, each) for each in range(shares - 2, shares + 2)]
        assert all(abs(value + SECURITY_BITS) > 1e-6 for value in exposures)
        assert all(abs(value + CORRECTNESS_BITS) > 1e-6 for value in lacks)


def test_too_few_holders_are_left_as_often_as_scipy_says() -> None:
    # One that is lost, of 100 with 20 lost, has drawn 40 of the other 99, of which 19 are lost as well.
    expected = 100 * hypergeom.sf(40 - 22, 99, 19, 40)
    assert log2_of_too_few_left(100, 20, 40, 22) == pytest.approx(math.log2(expected), rel=1e-9)


def is_exposed(colluding: int, left_out: int, shares: int, draws: Sequence[Sequence[int]]) -> bool:
    """Try all groups of honest envoys, which are those from number `colluding` on, and the best choice of the lost.

    A group is the smaller one of two that are cut off from each other; sums of both are known.
    """
    honest, drawn = range(colluding, len(draws)), [sum(1 << other for other in each) for each in draws]
    colluders = (1 << colluding) - 1
    if any((drawn[envoy] & colluders).bit_count() >= shares for envoy in honest):
        return True
    adjacent = [drawn[envoy] | sum(1 << other for other in honest if drawn[other] >> envoy & 1) for envoy in honest]
    for number in range(1, 1 << len(honest)):
        group = number << colluding
        members = [envoy for envoy in honest if group >> envoy & 1]
        if all(1 + (drawn[envoy] & (group | colluders)).bit_count() >= shares for envoy in members):
            around = 0
            for envoy in members:
                around |= adjacent[envoy - colluding]
            around &= ~group & ~colluders
            if around.bit_count() <= left_out and len(honest) - around.bit_count() >= 2 * len(members):
                return True
    return False


def test_bound_holds_against_a_director_that_tries_everything() -> None:
    envoys, colluding, left_out, drawn, shares = 8, 1, 3, 2, 3
    generator, tries = random.Random(4), 3000
    exposed = 0
    for _ in range(tries):
        draws = [generator.sample([other for other in range(envoys) if other != each], drawn) for each in range(envoys)]
        exposed += is_exposed(colluding, left_out, shares, draws)
    bound = 2 ** log2_of_exposure(envoys, colluding, left_out, drawn, shares)
    # Four standard deviations of the count.
    assert exposed / tries <= bound + 4 * math.sqrt(bound / tries)
    assert exposed / tries > bound / 2, "a bound of as much as this is of use"


def test_too_many_colluders_are_refused() -> None:
    with pytest.raises(ValueError, match="50 of 60 envoys that collude, and 12 that are lost, are too many"):
        least_neighbours(60, 50, 12, 19)
