import math

import pytest

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy import accounting
from openfl_audio.privacy.accounting import Release, epsilon, noise_for

# Noise multiplier, probability, steps, delta: from a few rounds of all units to hundreds of steps of few.
GRID = [
    (1.0, 0.01, 300, 1e-5),
    (0.8, 0.05, 50, 1e-6),
    (4.0, 0.2, 100, 1e-5),
    (1.5, 0.1, 100, 1e-7),
    (5.0, 1.0, 50, 1e-5),
    (10.0, 1.0, 50, 1e-5),
]


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
