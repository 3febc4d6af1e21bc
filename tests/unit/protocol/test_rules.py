from collections.abc import Sequence

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from openfl_audio.protocol.rules import GeometricMedian, Mean, Median, Rule, TrimmedMean, _inner_products

RULES = {
    "mean": Mean(),
    "unweighted mean": Mean(weighted=False),
    "median": Median(),
    "trimmed mean": TrimmedMean(share=0.2),
    "geometric median": GeometricMedian(),
}
ELEMENTWISE = [name for name, rule in RULES.items() if not rule.whole_tensors]
ROBUST = ["median", "trimmed mean", "geometric median"]


def make_updates(n: int, size: int = 50, seed: int = 0) -> tuple[list[np.ndarray], list[float]]:
    """Updates of unequal magnitude, so that the order of a sum shows in its last bits, and unequal numbers of clips."""
    generator = np.random.default_rng(seed)
    updates = [(generator.normal(size=size) * 10.0**exponent).astype(np.float32) for exponent in np.arange(n) % 4]
    return updates, [float(clips) for clips in generator.integers(1, 200, size=n)]


def combine(rule: Rule, updates: list[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return what `rule` makes of updates to a model of zeros."""
    return rule.combine(updates, weights, np.zeros(len(updates[0]) if updates else 0, np.float32))


def weiszfeld(updates: list[np.ndarray], weights: list[float]) -> np.ndarray:
    points, shares = np.array(updates, np.float64), np.array(weights)
    median = np.average(points, axis=0, weights=shares)
    for _ in range(3000):
        median = np.average(points, axis=0, weights=shares / np.linalg.norm(points - median, axis=1))
    return median


def test_the_mean_weighs_by_clips_or_not_at_all():
    updates, weights = make_updates(7)
    weighted = combine(Mean(), updates, weights)
    np.testing.assert_allclose(weighted, np.average(np.array(updates, float), axis=0, weights=weights), rtol=1e-6)
    plain = combine(Mean(weighted=False), updates, weights)
    np.testing.assert_allclose(plain, np.mean(np.array(updates, float), axis=0), rtol=1e-6)


@pytest.mark.parametrize("n", [10, 3000])
def test_the_mean_of_many_small_changes_is_as_exact_as_the_model(n):
    generator = np.random.default_rng(n)
    model = generator.normal(size=1000).astype(np.float32)
    changes, weights = generator.normal(size=(n, 1000)) * 1e-3, generator.integers(1, 1000, size=n)
    updates = (model + changes).astype(np.float32)
    found = Mean().combine(list(updates), weights.tolist(), model)
    expected = np.average(updates.astype(float), axis=0, weights=weights)
    # The result's own rounding is half a unit in the last place, and that of the sum less than as much again.
    assert (np.abs(found - expected) <= np.spacing(np.abs(expected).astype(np.float32)) + 1e-9).all()


def test_the_mean_of_a_float16_model_is_summed_wide():
    # 1 - 2050 is no float16.
    updates = [np.array([1], np.float16), np.array([3], np.float16)]
    assert Mean().combine(updates, [1, 1], np.array([2050], np.float16)) == 2


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_median_is_that_of_each_coordinate(n):
    updates, weights = make_updates(n)
    expected = np.median(np.array(updates, np.float64), axis=0)
    np.testing.assert_allclose(combine(Median(), updates, weights), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("n", "share", "cut"),
    [(10, 0.0, 0), (10, 0.1, 1), (10, 0.19, 1), (10, 0.2, 2), (100, 0.29, 29), (1, 0.49, 0), (2, 0.4999999999999, 0)],
)
def test_the_trimmed_mean_cuts_the_share_off_at_each_end_rounded_down(n, share, cut):
    updates, weights = make_updates(n)
    expected = np.sort(np.array(updates, np.float64), axis=0)[cut : n - cut].mean(axis=0)
    np.testing.assert_allclose(combine(TrimmedMean(share=share), updates, weights), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_is_where_a_long_plain_iteration_ends(seed):
    generator = np.random.default_rng(seed)
    updates = [generator.normal(size=3).astype(np.float32) for _ in range(6)]
    weights = [float(clips) for clips in generator.integers(5, 10, size=6)]
    # Distances are about 1, and the iteration may end a millionth of that away, more where few updates hold it.
    found = combine(GeometricMedian(weighted=True), updates, weights)
    np.testing.assert_allclose(found, weiszfeld(updates, weights), atol=1e-5)


def test_the_geometric_median_does_not_look_at_clips_unless_it_is_told_to():
    updates, _ = make_updates(5)
    liar = [1, 1, 1, 1, 10**9]
    np.testing.assert_array_equal(
        combine(GeometricMedian(), updates, liar), combine(GeometricMedian(), updates, [1] * 5)
    )
    np.testing.assert_array_equal(combine(GeometricMedian(weighted=True), updates, liar), updates[4])


def test_the_geometric_median_of_a_triangle_is_its_fermat_point():
    corners = [np.array(corner, np.float32) for corner in [(-1, 0), (1, 0), (0, 3)]]
    # From there every two corners are seen under 120 degrees, so it is 1 / sqrt(3) above the base.
    np.testing.assert_allclose(combine(GeometricMedian(), corners, [1, 1, 1]), [0, 3**-0.5], atol=1e-5)


def test_an_update_that_outweighs_the_others_is_the_geometric_median_to_the_bit():
    updates, _ = make_updates(3)
    np.testing.assert_array_equal(combine(GeometricMedian(weighted=True), updates, [100, 101, 0]), updates[1])
    np.testing.assert_array_equal(combine(GeometricMedian(weighted=True), [updates[0]] * 3, [1, 2, 3]), updates[0])
    np.testing.assert_array_equal(
        combine(GeometricMedian(), [updates[0], updates[2], updates[0]], [1, 1, 1]), updates[0]
    )


def test_updates_that_agree_and_outweigh_the_others_are_the_geometric_median_to_the_bit():
    # Two equal updates hold most of the clips, each less than half; from these numbers, rounding tells the two apart.
    updates = list(np.random.default_rng(2).normal(size=(17, 5003)).astype(np.float32))
    updates[16] = updates[1]
    weights = [10 if index in (1, 16) else 1 for index in range(17)]
    np.testing.assert_array_equal(combine(GeometricMedian(weighted=True), updates, weights), updates[1])


def test_two_updates_of_equal_weight_have_their_geometric_median_halfway():
    updates = [np.zeros(3, np.float32), np.array([2, 4, 6], np.float32)]
    np.testing.assert_allclose(combine(GeometricMedian(), updates, [5, 5]), [1, 2, 3], atol=1e-12)


def test_the_geometric_median_leaves_an_update_where_it_starts_and_does_not_belong():
    # The mean of these is the third point, where the others pull to the right with more than its own weight.
    points = [(-4, 0), (-4, 0), (0, 0), (2, 1), (2, -1), (2, 0.5), (2, -0.5)]
    updates = [np.array(point, np.float32) for point in points]
    result = combine(GeometricMedian(), updates, [1] * 7)
    directions = result - np.array(points, float)
    pulls = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.linalg.norm(result) > 0.1
    assert np.linalg.norm(pulls.sum(axis=0)) < 1e-4


def test_the_geometric_median_of_a_tensor_longer_than_a_block_sees_all_of_it():
    updates, _ = make_updates(4, size=150_000)
    weights = [3, 3, 4, 5]
    result = combine(GeometricMedian(weighted=True), updates, weights)
    directions = np.array(updates, np.float64) - result
    # Each update pulls with its weight; the iteration ends when the pulls balance to a millionth of their sum.
    assert np.linalg.norm(weights / np.linalg.norm(directions, axis=1) @ directions) < sum(weights) * 1e-5


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("wild", [1e6, 3e38])
def test_one_wild_update_does_not_move_a_robust_rule_far(name, wild):
    generator = np.random.default_rng(0)
    updates = [generator.normal(size=20).astype(np.float32) for _ in range(9)]
    honest = combine(RULES[name], updates, [1] * 9)
    moved = combine(RULES[name], [*updates, np.full(20, wild, np.float32)], [1] * 10)
    # The spread of the honest updates is 1 in each coordinate.
    assert np.abs(moved - honest).max() < 1
    assert np.abs(combine(Mean(), [*updates, np.full(20, wild, np.float32)], [1] * 10)).min() > 1e4


def test_the_geometric_median_with_a_wild_update_is_as_exact_as_without():
    generator = np.random.default_rng(1)
    updates = [generator.normal(size=20).astype(np.float32) for _ in range(9)]
    for wild in (1e6, 1e12, 3e38):
        far = np.full(20, wild, np.float32)
        # From so far away an update pulls with its whole weight, always in the same direction.
        expected = np.mean(updates, axis=0, dtype=np.float64)
        for _ in range(1000):
            pulls = 1 / np.linalg.norm(np.array(updates, np.float64) - expected, axis=1)
            expected = (pulls @ np.array(updates, np.float64) + np.full(20, 20**-0.5)) / pulls.sum()
        result = combine(GeometricMedian(), [far, *updates], [1] * 10)
        np.testing.assert_allclose(result, expected, atol=1e-5 if wild > 1e6 else 1e-4)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("length", [1, 7, 49])
def test_slices_give_the_same_bits_as_the_whole_tensor(name, length):
    updates, weights = make_updates(23)
    updates = [update * np.pi for update in np.array(updates, np.float64)]  # so that sums of a few are not exact
    whole = combine(RULES[name], updates, weights)
    starts = range(0, 50, length)
    slices = [combine(RULES[name], [update[start : start + length] for update in updates], weights) for start in starts]
    np.testing.assert_array_equal(np.concatenate(slices), whole)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_an_array_of_the_same_length_and_leaves_the_updates_alone(name):
    updates, weights = make_updates(5)
    before = np.array(updates)
    result = combine(RULES[name], updates, weights)
    # The mean is summed in the type of the model.
    dtype = np.float32 if isinstance(RULES[name], Mean) else np.float64
    assert (result.dtype, result.shape) == (dtype, (50,))
    np.testing.assert_array_equal(updates, before)


def test_the_mean_asks_for_an_update_only_when_it_has_counted_the_one_before():
    buffer = np.empty(3, np.float32)

    def read():
        for value in (1, 2, 6):
            buffer[:] = value  # as a reader that has memory for one update
            yield buffer

    np.testing.assert_array_equal(Mean().combine(read(), [1, 1, 2], np.zeros(3, np.float32)), [3.75] * 3)


@pytest.mark.parametrize("name", RULES)
def test_nothing_to_combine_is_an_error(name):
    with pytest.raises(ValueError, match=r"add up to 0|need at least one array"):
        combine(RULES[name], [], [])


@pytest.mark.parametrize("rule", [Mean(), Mean(weighted=False), GeometricMedian()])
def test_updates_and_weights_that_differ_in_number_are_an_error(rule):
    updates, _ = make_updates(3)
    for weights in ([1, 1], [1, 1, 1, 1]):
        with pytest.raises(ValueError, match=r"zip|broadcast|shape"):
            combine(rule, updates, weights)
    if rule != Mean(weighted=False):
        with pytest.raises(ValueError, match="the weights of 3 updates add up to 0"):
            combine(rule, updates, [0, 0, 0])


def test_the_geometric_median_of_many_updates_depends_on_no_number_of_threads():
    updates = np.random.default_rng(0).standard_normal((150, 2000)).astype(np.float32)
    # The median follows from these alone, and mostly, but not always, hides a last bit of them.
    products = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            products.append(_inner_products(updates))
    assert np.array_equal(*products)


def test_a_trimmed_mean_of_no_share_trims_nobody():
    with pytest.raises(ValueError, match="share 0 cuts nothing off"):
        TrimmedMean(share=0).check_number(100)


@pytest.mark.parametrize(("share", "least"), [(0.1, 10), (0.29, 4), (0.4, 3), (0.49, 3)])
def test_the_least_number_of_updates_that_is_named_is_the_least_that_is_trimmed(share, least):
    with pytest.raises(ValueError, match=f"it takes {least} updates"):
        TrimmedMean(share=share).check_number(least - 1)
    TrimmedMean(share=share).check_number(least)
