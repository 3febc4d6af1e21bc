import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.privacy.site_level import AdaptiveClip, clip_update, noisy_mean, norm
from openfl_audio.testing.noise import repeatable_noise

LIKE = {"a": np.zeros((3, 2), np.float32), "b": np.zeros(10, np.float32)}


def update(scale: float, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: (scale * generator.normal(size=each.shape)).astype(np.float32) for name, each in LIKE.items()}


def test_an_update_within_the_bound_stays_as_it_is():
    change = update(0.01)
    for clipping in ("flat", "per_dimension"):
        for name, tensor in clip_update(change, 100.0, clipping).items():
            np.testing.assert_array_equal(tensor, change[name])


def test_a_large_update_keeps_its_direction_and_gets_the_norm_of_the_bound():
    change = update(100.0)
    clipped = clip_update(change, 2.0)
    assert norm(clipped) == pytest.approx(2.0, rel=1e-9)
    for name, tensor in clipped.items():
        np.testing.assert_allclose(tensor, change[name] * 2.0 / norm(change), rtol=1e-6)


@pytest.mark.parametrize(
    ("clipping", "expected"),
    [("per_layer", (2 / np.sqrt(2), 2 / np.sqrt(2))), ("per_dimension", (2 * np.sqrt(6 / 16), 2 * np.sqrt(10 / 16)))],
)
def test_every_tensor_has_a_bound_of_its_own(clipping, expected):
    clipped = clip_update(update(100.0), 2.0, clipping)
    assert [np.linalg.norm(each) for each in clipped.values()] == pytest.approx(expected)
    # A tensor that is small enough is left alone, however large another is.
    mixed = {"a": update(100.0)["a"], "b": update(1e-3)["b"]}
    np.testing.assert_array_equal(clip_update(mixed, 2.0, clipping)["b"], mixed["b"])


@given(
    st.sampled_from(["flat", "per_layer", "per_dimension"]), st.floats(1e-6, 1e6), st.floats(0, 1e30), st.integers(0, 9)
)
def test_no_update_has_more_than_the_bound(clipping, clip, scale, seed):
    assert norm(clip_update(update(scale, seed), clip, clipping)) <= clip * (1 + 1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_counts_as_zeros(value):
    change = update(1.0)
    change["b"][3] = value
    assert norm(clip_update(change, 1.0)) == 0.0


def test_an_unknown_way_to_clip_raises():
    with pytest.raises(ValueError, match="clipping is 'layers': it should be one of flat, per_layer, per_dimension"):
        clip_update(update(1.0), 1.0, "layers")


def test_the_mean_is_over_the_planned_number_and_its_noise_has_the_deviation_that_is_accounted_for():
    clip, multiplier, planned = 0.5, 3.0, 8
    like = {"a": np.zeros(200_000)}
    clipped = [{"a": np.full(200_000, 1e-4)} for _ in range(5)]
    mean = noisy_mean(clipped, like, clip, multiplier, planned, repeatable_noise(0, "director", 0))["a"]
    assert mean.std() == pytest.approx(multiplier * clip / planned, rel=0.01)
    without = noisy_mean([], like, clip, multiplier, planned, repeatable_noise(0, "director", 0))["a"]
    np.testing.assert_allclose(mean - without, 5e-4 / planned, rtol=1e-6)


def test_a_mean_without_noise_raises():
    with pytest.raises(ValueError, match="noise_multiplier is 0.0"):
        noisy_mean([], LIKE, 1.0, 0.0, 5, repeatable_noise(0, "director", 0))


def test_the_bound_moves_to_the_quantile_of_the_norms():
    norms = np.random.default_rng(0).lognormal(size=200)
    noise = repeatable_noise(0, "director", 0)
    bound = AdaptiveClip(clip=20.0, count_noise=10.0, quantile=0.5)
    for _ in range(100):
        bound = bound.next(norms, len(norms), noise)
    assert np.mean(norms <= bound.clip) == pytest.approx(0.5, abs=0.1)


def test_a_step_of_the_bound_follows_the_formula():
    class NoNoise:
        def normal(self, count: int) -> np.ndarray:
            return np.zeros(count)

    after = AdaptiveClip(clip=1.0, count_noise=1.0, quantile=0.5, rate=0.2).next([0.5, 0.9, 2.0, 0.1], 4, NoNoise())
    assert after.clip == pytest.approx(np.exp(-0.2 * (0.75 - 0.5)))


def test_updates_and_count_together_cost_what_one_release_would():
    adaptive = AdaptiveClip(clip=1.0, count_noise=2.0)
    of_updates = adaptive.update_noise(2.0)
    assert of_updates > 2.0
    both = [Release(of_updates, 1.0, 30), Release(2 * adaptive.count_noise, 1.0, 30)]
    assert epsilon(both, 1e-5) == pytest.approx(epsilon([Release(2.0, 1.0, 30)], 1e-5), rel=1e-6)


def test_a_count_that_costs_more_than_there_is_raises():
    with pytest.raises(ValueError, match="count_noise is 0.5: .* it should be above 1.0"):
        AdaptiveClip(clip=1.0, count_noise=0.5).update_noise(2.0)
