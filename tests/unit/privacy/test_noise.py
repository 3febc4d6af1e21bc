import numpy as np
from scipy import stats

from openfl_audio.privacy.noise import Noise, noise_of, repeatable_noise
from openfl_audio.protocol.privacy import TEST_NOISE
from openfl_audio.testing.noise import noise_that_repeats


def test_noise_is_normal():
    values = repeatable_noise(0, "site", 0).normal(200_000)
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert np.isfinite(values).all()


def test_no_two_streams_of_the_system_are_alike_and_no_number_is_given_twice():
    one, other = Noise(), Noise()
    assert one.secret
    first, second = one.normal(1000), one.normal(1000)
    assert not np.isin(second, first).any()
    assert not np.isin(other.normal(1000), first).any()


def test_repeatable_noise_repeats_and_says_that_it_is_not_secret():
    one, same = repeatable_noise(1, "site_b", 3), repeatable_noise(1, "site_b", 3)
    assert not one.secret
    np.testing.assert_array_equal(np.concatenate([one.normal(7), one.normal(5)]), same.normal(12))
    for other in ((2, "site_b", 3), (1, "site_a", 3), (1, "site_b", 4)):
        assert repeatable_noise(*other).normal(1) != same.normal(1)


def test_noise_of_tests_is_said_wherever_it_is_taken(caplog):
    assert noise_of("site_b", 3).secret
    assert not caplog.messages
    with noise_that_repeats(1):
        assert not noise_of("site_b", 3).secret
    assert caplog.messages == [f"{TEST_NOISE} makes noise repeat: nothing of 'site_b' in round 3 is private"]


def test_units_are_drawn_each_by_itself():
    """The number of drawn units varies as a binomial's does: it is not fixed, and may be none."""
    noise = repeatable_noise(0, "site", 0)
    sizes = [len(noise.chosen(20, 0.1)) for _ in range(5000)]
    assert abs(np.mean(sizes) - 2.0) < 0.08
    assert abs(np.var(sizes) - 1.8) < 0.15
    assert min(sizes) == 0
    np.testing.assert_array_equal(noise.chosen(5, 1.0), np.arange(5))


def test_the_ends_of_the_uniform_numbers_are_finite_noise(monkeypatch):
    from openfl_audio.privacy import noise

    for word in (0, 2**64 - 1):
        monkeypatch.setattr(noise, "words", lambda *_, word=word: np.array([word], "<u8"))
        assert 8 < abs(Noise().normal(1)[0]) < 8.3
