import math

import numpy as np
import pytest
from dp_accounting import pld

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy import accounting
from openfl_audio.privacy.accounting import Release, epsilon, noise_for, privacy_cost, summed_multiplier
from openfl_audio.protocol.privacy import SiteLevel

# Noise multiplier, probability, steps, delta: from a few rounds of all units to hundreds of steps of few.
GRID = [
    (1.0, 0.01, 300, 1e-5),
    (0.8, 0.05, 50, 1e-6),
    (4.0, 0.2, 100, 1e-5),
    (1.5, 0.1, 100, 1e-7),
    (5.0, 1.0, 50, 1e-5),
    (10.0, 1.0, 50, 1e-5),
]


@pytest.mark.training
@pytest.mark.parametrize(("noise_multiplier", "probability", "steps", "delta"), GRID)
def test_both_accountants_agree_with_those_of_opacus(noise_multiplier, probability, steps, delta):
    from opacus.accountants import PRVAccountant, RDPAccountant

    ours = [Release(noise_multiplier, probability, steps)]
    for name, theirs in (("rdp", RDPAccountant()), ("pld", PRVAccountant())):
        theirs.history = [(noise_multiplier, probability, steps)]
        assert epsilon(ours, delta, name) == pytest.approx(theirs.get_epsilon(delta), rel=0.01)


def exact_delta(epsilon: float, mu: float) -> float:
    """Return the delta of Gaussian noise with sensitivity over deviation `mu` (Balle & Wang, arXiv 1805.06530)."""

    def cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize("noise_multiplier", [2.0, 10.0])
def test_where_all_units_are_in_all_steps_the_cost_is_that_of_one_release_with_less_noise(noise_multiplier):
    """50 releases with noise z are one with z / sqrt(50), whose delta has a closed form."""
    release = Release(noise_multiplier, 1.0, 50)
    tight = epsilon([release], 1e-5, "pld")
    assert exact_delta(tight, math.sqrt(50) / noise_multiplier) == pytest.approx(1e-5, rel=0.02)
    assert tight < epsilon([release], 1e-5) < 1.1 * tight


@pytest.mark.parametrize(("noise_multiplier", "expected"), [(1, 57), (2, 22), (5, 7.1), (10, 3.2)])
def test_fifty_rounds_of_all_sites_are_dear(noise_multiplier, expected):
    assert epsilon([Release(noise_multiplier, 1.0, 50)], 1e-5) == pytest.approx(expected, rel=0.01)


def summed(deviation: float, sites: int) -> np.ndarray:
    """Return the probabilities of the sum of discrete Gaussian noise of so many sites, around 0."""
    values = np.arange(-60.0, 61.0)
    one = np.exp(-(values**2) / (2 * deviation**2))
    total = one = one / one.sum()
    for _ in range(sites - 1):
        total = np.convolve(total, one)
    middle = len(total) // 2
    return total[middle - 40 : middle + 41]


@pytest.mark.parametrize("deviation", [0.5, 0.6, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("sites", [2, 5])
def test_the_noise_of_several_sites_costs_no_more_than_is_said(deviation, sites):
    """The divergence of order 2 between the sum and the same one, a step further, is computed term by term."""
    noise = summed(deviation, sites)
    terms = (noise[1:] ** 2)[noise[:-1] > 1e-250] / noise[:-1][noise[:-1] > 1e-250]
    divergence = math.log(terms.sum())
    said = 1 / summed_multiplier(deviation * math.sqrt(sites), sites, deviation, 1) ** 2
    assert divergence <= said * (1 + 1e-9)
    assert deviation < 0.6 or divergence > said / 2.6
    if (deviation, sites) == (0.5, 5):
        assert divergence > 1.05 / (deviation**2 * sites), "a Gaussian with this variance costs less"


def test_the_noise_of_sites_is_that_of_a_gaussian_with_the_deviation_that_is_used():
    for sites in (2, 17, 34):
        assert summed_multiplier(5.0, sites) == 5.0
    distance = 10 * math.exp(-(math.pi**2)) * 1000
    assert summed_multiplier(5.0, 2, deviation=1.0, values=10**6) == pytest.approx(1 / (1 / 5 + distance))


def test_fifty_rounds_without_a_trusted_director_cost_what_a_discrete_gaussian_does():
    """The second opinion is a privacy loss distribution of a discrete Gaussian, with five times the sensitivity."""
    level = SiteLevel(noise_multiplier=5.0, clip=0.5, delta=1e-5)
    exact = pld.privacy_loss_distribution.from_discrete_gaussian_mechanism(50.0, 10).self_compose(50)
    tight, told = exact.get_epsilon_for_delta(1e-5), privacy_cost(level, 50, honest_survivors=3)
    assert tight < told < 1.1 * tight
    assert told == privacy_cost(level, 50)


def test_releases_add_up_whatever_their_order():
    few, many, other = Release(1.0, 0.01, 100), Release(1.0, 0.01, 900), Release(2.0, 0.1, 10)
    assert epsilon([few, many], 1e-5) == epsilon([Release(1.0, 0.01, 1000)], 1e-5)
    assert epsilon([few, other, many], 1e-5) == pytest.approx(epsilon([other, many, few], 1e-5), rel=1e-12)
    assert epsilon([few, other], 1e-5) > max(epsilon([few], 1e-5), epsilon([other], 1e-5))
    assert epsilon([], 1e-5) == epsilon([Release(1.0, 0.5, 0)], 1e-5) == 0.0


def test_the_noise_for_a_budget_costs_no_more_and_hardly_less():
    multiplier = noise_for(3.0, 1e-5, 0.05, 400)
    assert 2.98 < epsilon([Release(multiplier, 0.05, 400)], 1e-5) <= 3.0


def test_no_noise_is_enough_for_a_budget_below_the_least():
    with pytest.raises(PrivacyError, match="no noise keeps 1000000 steps .* within epsilon 1e-09"):
        noise_for(1e-9, 1e-9, 1.0, 10**6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 0.1, 1), "noise_multiplier is 0.0: it should be a number above 0"),
        ((1.0, 1.5, 1), "probability is 1.5: it should be at most 1"),
        ((math.nan, 0.1, 1), "noise_multiplier is nan"),
        ((1.0, 0.1, -1), "steps is -1"),
        ((1.0, 0.1, 0.5), "steps is 0.5"),
    ],
)
def test_a_release_that_cannot_be_raises(values, message):
    with pytest.raises(ValueError, match=message):
        Release(*values)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_that_is_no_probability_raises(delta):
    with pytest.raises(ValueError, match="delta is"):
        epsilon([Release(1.0, 0.1, 1)], delta)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'dp_accounting'", name="dp_accounting")

    monkeypatch.setattr(accounting, "_Library", missing)
    accounting._library.cache_clear()  # another test may have loaded it
    with pytest.raises(PrivacyError, match=r"dp_accounting is not installed: pip install 'openfl-audio\[privacy\]'"):
        epsilon([Release(1.0, 0.1, 1)], 1e-5)
