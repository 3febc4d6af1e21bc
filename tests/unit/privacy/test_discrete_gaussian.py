import decimal

import numpy as np
import pytest
from scipy import stats

from openfl_audio.privacy import discrete_gaussian as module
from openfl_audio.privacy.discrete_gaussian import DEVIATION, discrete_gaussian
from openfl_audio.privacy.noise import Noise, repeatable_noise

N = 400_000


def test_noise_has_the_distribution_of_a_discrete_gaussian():
    values = discrete_gaussian(repeatable_noise(4, "site", 0), N)
    assert values.dtype == np.int64
    # With a deviation of 2^20 a discrete Gaussian and a normal distribution differ by less than a millionth.
    assert stats.kstest((values + 0.5) / DEVIATION, "norm").pvalue > 0.01
    assert abs(values.mean()) < 4 * DEVIATION / np.sqrt(N)
    assert values.var() == pytest.approx(DEVIATION**2, rel=4 * np.sqrt(2 / N))
    bits = values & 1023
    assert stats.chisquare(np.bincount(bits, minlength=1024)).pvalue > 0.01, "the last bits are alike"


def test_both_signs_and_zero_have_their_probabilities(monkeypatch):
    """With a deviation of 2 every value comes often enough to be counted, and has its exact probability."""
    monkeypatch.setattr(module, "DEVIATION_BITS", 1)
    monkeypatch.setattr(module, "DEVIATION", 2)
    values = discrete_gaussian(repeatable_noise(1, "site", 0), N)
    support = np.arange(-9, 10)
    weights = np.exp(-(support.astype(float) ** 2) / 8)
    counts = np.array([np.count_nonzero(values == value) for value in support])
    assert counts.sum() > 0.999 * N
    expected = weights / np.exp(-(np.arange(-60, 61) ** 2) / 8).sum() * N
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01


def test_what_floating_point_decides_is_what_exact_numbers_decide(monkeypatch):
    quick = discrete_gaussian(repeatable_noise(2, "site", 0), 3000)
    monkeypatch.setattr(module, "DOUBT", 2.0)
    np.testing.assert_array_equal(discrete_gaussian(repeatable_noise(2, "site", 0), 3000), quick)


def test_the_exponential_is_right_within_what_is_doubted():
    exponents = -np.random.default_rng(0).integers(0, 40 * DEVIATION**2, 500)
    with decimal.localcontext(prec=40):
        exact = [float((decimal.Decimal(int(each)) / (2 * DEVIATION**2)).exp()) for each in exponents]
    assert np.abs(np.exp(exponents / (2 * DEVIATION**2)) - exact).max() < module.DOUBT / 16


def test_a_number_that_64_bits_do_not_tell_from_the_probability_gets_more():
    """The bound is 2^64 * exp(1/2) / 2 for a candidate of 0: only its whole part is in doubt."""
    with decimal.localcontext(prec=60):
        bound = decimal.Decimal("0.5").exp() * 2**63
    below, rest = int(bound), bound - int(bound)
    assert module._is_below(below - 1, DEVIATION**2, 0, Noise())
    assert not module._is_below(below + 1, DEVIATION**2, 0, Noise())
    decided = [module._is_below(below, DEVIATION**2, 0, Noise()) for _ in range(2000)]
    assert np.mean(decided) == pytest.approx(float(rest), abs=0.05)


def test_noise_of_parts_repeats_with_its_key_alone_and_parts_differ():
    parts = [part.words(4).tolist() for part in repeatable_noise(3, "site", 0).parts(3)]
    assert parts == [part.words(4).tolist() for part in repeatable_noise(3, "site", 0).parts(3)]
    assert len({tuple(part) for part in parts}) == 3
    assert all(part.secret for part in Noise().parts(2))
    assert not any(part.secret for part in repeatable_noise(3, "site", 0).parts(2))
    assert not np.array_equal(discrete_gaussian(Noise(), 10), discrete_gaussian(Noise(), 10))
