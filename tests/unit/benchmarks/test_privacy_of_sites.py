"""The cost of privacy of sites without a trusted director."""

import pytest

from benchmarks.privacy_of_sites import measure


def test_the_errors_are_those_of_the_noise_that_is_planned():
    """Five sites come, and two, or four, would have had to: z * sqrt(5 / 2) / 5, or z * sqrt(5 / 4) / 5."""
    found = measure(5, 20_000)
    assert found["trusted"] == pytest.approx(5 / 5, rel=0.03)
    assert found["secret"] == pytest.approx(5 * (5 / 2) ** 0.5 / 5, rel=0.03)
    assert found["secret_without_colluders"] == pytest.approx(5 * (5 / 4) ** 0.5 / 5, rel=0.03)
    assert (found["colluders"], found["epsilon"]) == (2, 7.1)
