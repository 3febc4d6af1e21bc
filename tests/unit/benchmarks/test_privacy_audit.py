"""The audit of DP-SGD: its bound by hand, and that it finds what is broken."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from benchmarks import privacy_audit
from benchmarks.privacy_audit import audit, epsilon_bound, p_value
from openfl_audio.privacy.noise import repeatable_noise


def test_without_a_delta_the_bound_is_that_of_a_coin():
    # All of 100 guesses right: with probability q each, q^100 is 5 %.
    accuracy = 0.05 ** (1 / 100)
    assert epsilon_bound(1000, 100, 100, 0.0) == pytest.approx(np.log(accuracy / (1 - accuracy)), abs=2e-3)
    assert p_value(1000, 100, 73, 1.0, 0.0) == pytest.approx(binom.sf(72, 100, np.e / (1 + np.e)))


def test_a_delta_adds_its_share_of_what_could_have_been_swapped():
    # One guess, which is right: P[1 > W >= 0] = 1 - q.
    assert p_value(10, 1, 1, 1.0, 0.01) == pytest.approx(np.e / (1 + np.e) + 2 * 10 * 0.01 / (1 + np.e))
    # Two, both right: the larger of P[W = 1] and P[W < 2] / 2.
    q = np.e / (1 + np.e)
    assert p_value(10, 2, 2, 1.0, 0.01) == pytest.approx(q**2 + 0.2 * max(2 * q * (1 - q), (1 - q**2) / 2))
    assert epsilon_bound(1000, 100, 100, 1e-3) < epsilon_bound(1000, 100, 100, 0.0)


def test_guesses_no_better_than_chance_rule_out_nothing():
    assert epsilon_bound(1000, 100, 55, 1e-5) == 0.0


@pytest.mark.slow
@pytest.mark.training
def test_steps_as_they_are_stay_below_the_accountant_and_broken_ones_do_not(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(privacy_audit, "GUESSED", 0.1)
    noise = repeatable_noise(0, "audit", 0)
    shipped, unclipped, bare = (audit(variant, 30, noise) for variant in ("shipped", "clip off", "no noise"))
    assert shipped["bound"] < shipped["accountant"]
    assert shipped["accountant"] == pytest.approx(2.02, abs=0.01)
    for broken in (unclipped, bare):
        assert broken["found_broken"]
        assert broken["right"] == broken["guesses"]
