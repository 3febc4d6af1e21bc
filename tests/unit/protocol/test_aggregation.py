import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from openfl_audio.protocol.aggregation import (
    BLOCK,
    Aggregation,
    FedAdagrad,
    FedAdam,
    FedYogi,
    GeometricMedian,
    Mean,
    Median,
    OpenFLAdagrad,
    OpenFLAdam,
    OpenFLYogi,
    Rule,
    TrimmedMean,
    _inner_products,
    clipped,
    distance,
)

RULES = {
    "mean": Mean(),
    "unweighted mean": Mean(weighted=False),
    "median": Median(),
    "trimmed mean": TrimmedMean(share=0.2),
    "geometric median": GeometricMedian(),
}
ELEMENTWISE = [name for name, rule in RULES.items() if not rule.whole_tensors]
ROBUST = ["median", "trimmed mean", "geometric median"]
OPTIMIZERS = {
    "adam": FedAdam(),
    "yogi": FedYogi(),
    "adagrad": FedAdagrad(),
    "openfl_adam": OpenFLAdam(),
    "openfl_yogi": OpenFLYogi(),
    "openfl_adagrad": OpenFLAdagrad(),
}


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


# What the rule made of the updates in two rounds of four parameters that start at 1. The last two move much in one
# round and hardly in the other, so that the second moment of Yogi grows and shrinks.
FIRST_ROUND, SECOND_ROUND = [1.5, 0.8, 1.0001, 1.5], [1.0, 1.3, 1.4, 1.101]


@pytest.mark.parametrize(
    ("optimizer", "after_first", "after_second"),
    [
        (
            FedAdam,
            [1.098020190, 0.904873948, 1.000501244, 1.098020190],
            [1.166081016, 0.952413676, 1.098051992, 1.187259512],
        ),
        (
            FedYogi,
            [1.098019998, 0.904875078, 1.000500013, 1.098019998],
            [1.165758552, 0.952367017, 1.098050181, 1.186823741],
        ),
        (
            FedAdagrad,
            [1.099800200, 0.900498750, 1.004987562, 1.099800200],
            [1.080264621, 0.989719205, 1.104734723, 1.100039680],
        ),
        (
            OpenFLAdam,
            [1.099999998, 0.900000005, 1.099990001, 1.099999998],
            [1.151102605, 0.936610356, 1.174425999, 1.167154589],
        ),
        (
            OpenFLYogi,
            [1.099999998, 0.900000005, 1.099990001, 1.099999998],
            [1.151102605, 0.936610356, 1.174425999, 1.167154858],
        ),
        (
            OpenFLAdagrad,
            [1.084515425, 0.946547752, 1.000031623, 1.084515425],
            [1.070373290, 1.015217652, 1.078475690, 1.087300746],
        ),
    ],
    ids=OPTIMIZERS,
)
def test_the_defaults_take_two_steps_to_numbers_that_were_worked_out_apart(optimizer, after_first, after_second):
    """Worked out in float64, one parameter at a time, from the formulas of the paper's algorithm 2 and of OpenFL.

    The paper's: beta1 0.9 (Adagrad 0), beta2 0.99, tau 1e-3, m = 0 and v = tau^2 before the first round.
    """
    optimizer = optimizer(learning_rate=0.1)
    current = np.ones(4)
    state = {slot: np.full(4, optimizer.initial_value(slot), np.float32) for slot in optimizer.slots}
    for round_number, (combined, expected) in enumerate([(FIRST_ROUND, after_first), (SECOND_ROUND, after_second)]):
        current, state = optimizer.step(current, np.array(combined), state, round_number)
        # The state is kept in float32.
        np.testing.assert_allclose(current, expected, rtol=0, atol=2e-8)


def paper_adam(values, change, kept, _):
    kept["m"] = 0.8 * kept["m"] + 0.2 * change
    kept["v"] = 0.95 * kept["v"] + 0.05 * change**2
    return values + 0.05 * kept["m"] / (np.sqrt(kept["v"]) + 1e-2)


def paper_yogi(values, change, kept, _):
    kept["m"] = 0.8 * kept["m"] + 0.2 * change
    kept["v"] = kept["v"] - 0.05 * change**2 * np.sign(kept["v"] - change**2)
    return values + 0.05 * kept["m"] / (np.sqrt(kept["v"]) + 1e-2)


def paper_adagrad(values, change, kept, _):
    kept["v"] = kept["v"] + change**2
    return values + 0.05 * change / (np.sqrt(kept["v"]) + 1e-2)


def openfl_adam(values, change, kept, t):
    kept["m"] = 0.9 * kept["m"] - 0.1 * change
    kept["v"] = 0.999 * kept["v"] + 0.001 * change**2
    return values - 0.05 * (kept["m"] / (1 - 0.9**t)) / (np.sqrt(kept["v"] / (1 - 0.999**t)) + 1e-3)


def openfl_yogi(values, change, kept, t):
    kept["m"] = 0.9 * kept["m"] - 0.1 * change
    kept["v"] = 0.999 * kept["v"] + 0.001 * np.sign(change**2 - kept["v"]) * change**2
    return values - 0.05 * (kept["m"] / (1 - 0.9**t)) / (np.sqrt(kept["v"] / (1 - 0.999**t)) + 1e-3)


def openfl_adagrad(values, change, kept, _):
    kept["v"] = kept["v"] + change**2
    return values + 0.05 * change / (np.sqrt(kept["v"]) + 1e-3)


@pytest.mark.parametrize(
    ("optimizer", "plain_step", "first", "second"),
    [
        (FedAdam(learning_rate=0.05, betas=(0.8, 0.95), epsilon=1e-2), paper_adam, 0, 1e-4),
        (FedYogi(learning_rate=0.05, betas=(0.8, 0.95), epsilon=1e-2), paper_yogi, 0, 1e-4),
        (FedAdagrad(learning_rate=0.05, epsilon=1e-2), paper_adagrad, 0, 1e-4),
        (OpenFLAdam(learning_rate=0.05, epsilon=1e-3), openfl_adam, 0, 0),
        (OpenFLAdam(learning_rate=0.05, epsilon=1e-3, initial_accumulator_value=0.5), openfl_adam, 0.5, 0.5),
        (OpenFLYogi(learning_rate=0.05, epsilon=1e-3), openfl_yogi, 0, 0),
        (OpenFLYogi(learning_rate=0.05, epsilon=1e-3, initial_accumulator_value=0.5), openfl_yogi, 0.5, 0.5),
        (OpenFLAdagrad(learning_rate=0.05, epsilon=1e-3), openfl_adagrad, 0, 0.1),
    ],
)
def test_an_optimizer_steps_as_its_formula_says_over_several_rounds(optimizer, plain_step, first, second):
    generator = np.random.default_rng(0)
    current = expected = generator.normal(size=20)
    state = {slot: np.full(20, optimizer.initial_value(slot), np.float32) for slot in optimizer.slots}
    kept = {"m": np.full(20, first), "v": np.full(20, second)}
    for round_number in range(5):
        updates = [current + generator.normal(size=20) for _ in range(3)]
        combined = Mean().combine(updates, [1, 5, 2], current)
        mean_update = np.average(updates, axis=0, weights=[1, 5, 2])
        expected = plain_step(expected, mean_update - expected, kept, round_number + 1)
        current, state = optimizer.step(current, combined, state, round_number)
        # The state is kept in float32, the formula's in float64.
        np.testing.assert_allclose(current, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_a_slice_as_it_does_the_whole_and_leaves_its_arguments_alone(name):
    optimizer = OPTIMIZERS[name]
    generator = np.random.default_rng(0)
    current, combined = generator.normal(size=(2, 30))
    state = {slot: np.abs(generator.normal(size=30)).astype(np.float32) for slot in optimizer.slots}
    before = [array.copy() for array in (current, combined, *state.values())]
    values, after = optimizer.step(current, combined, state, 3)
    for array, copy in zip((current, combined, *state.values()), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert values.dtype == np.float64
    assert {slot: array.dtype for slot, array in after.items()} == dict.fromkeys(optimizer.slots, np.float32)
    for part in (slice(0, 1), slice(1, 30)):
        sliced = {slot: array[part] for slot, array in state.items()}
        part_values, part_after = optimizer.step(current[part], combined[part], sliced, 3)
        np.testing.assert_array_equal(part_values, values[part])
        for slot in optimizer.slots:
            np.testing.assert_array_equal(part_after[slot], after[slot][part])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_brings_the_model_to_where_the_updates_point(name):
    optimizer = OPTIMIZERS[name].model_copy(update={"learning_rate": 0.5})
    current, goal = np.zeros(4), np.array([1.0, -2.0, 3.0, -4.0])
    state = {slot: np.full(4, optimizer.initial_value(slot), np.float32) for slot in optimizer.slots}
    for round_number in range(300):
        current, state = optimizer.step(current, goal, state, round_number)
    np.testing.assert_allclose(current, goal, atol=0.1)


def test_clipping_shortens_an_update_to_the_norm_and_leaves_shorter_ones_alone():
    aggregation = Aggregation(clip_norm=2.0)
    current = np.array([1, 1, 1], np.float32)
    updates = [current + np.array(step, np.float32) for step in [(3, 0, 4), (0, 1, 0), (0, 0, 0)]]
    scales = aggregation.clip_scales([5.0, 1.0, 0.0])
    assert scales == [0.4, 1.0, 1.0]
    np.testing.assert_allclose(clipped(current, updates[0], scales[0]) - current, [1.2, 0, 1.6], rtol=1e-6)
    assert clipped(current, updates[1], scales[1]) is updates[1]
    assert Aggregation().clip_scales([5.0, 0.0]) == [1.0, 1.0]


def test_the_geometric_median_of_many_updates_depends_on_no_number_of_threads():
    updates = np.random.default_rng(0).standard_normal((150, 2000)).astype(np.float32)
    # The median follows from these alone, and mostly, but not always, hides a last bit of them.
    products = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            products.append(_inner_products(updates))
    assert np.array_equal(*products)


def test_a_distance_depends_on_no_order_no_cut_and_no_number_of_threads():
    rng = np.random.default_rng(0)
    pairs = [
        tuple(rng.normal(size=(2, length)).astype(np.float32)) for length in (7 * BLOCK + 7, 5, BLOCK, 99, 5 * BLOCK)
    ]
    expected = math.sqrt(math.fsum(math.fsum(np.square(b.astype(float) - a)) for a, b in pairs))
    found = distance(pairs)
    assert found == pytest.approx(expected, rel=1e-14)
    assert distance(reversed(pairs)) == found
    ends = (slice(0, 2 * BLOCK), slice(2 * BLOCK, None))
    cut = [(a[part], b[part]) for a, b in pairs for part in ends]
    assert distance(cut) == found
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            assert distance(pairs) == found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("server_optimizer", [None, *OPTIMIZERS])
def test_an_aggregation_comes_back_from_json_as_it_was(rule, server_optimizer):
    optimizer = server_optimizer and OPTIMIZERS[server_optimizer].model_copy(update={"learning_rate": 0.3})
    aggregation = Aggregation(rule=RULES[rule], clip_norm=0.5, server_optimizer=optimizer)
    assert Aggregation.model_validate_json(aggregation.model_dump_json()) == aggregation


def test_without_a_word_it_is_federated_averaging():
    assert Aggregation.model_validate_json("{}") == Aggregation(rule=Mean(weighted=True))
    assert Aggregation.model_validate({"server_optimizer": {"optimizer": "adagrad"}}).server_optimizer == FedAdagrad()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"rule": {"rule": "trimmed_mean", "share": 0.5}}, "share\n.*less than 0.5"),
        ({"rule": {"rule": "trimmed_mean", "share": -0.1}}, "share\n.*greater than or equal to 0"),
        ({"rule": {"rule": "trimmed_mean"}}, "share\n.*required"),
        ({"rule": {"rule": "krum"}}, "'krum'.*'mean', 'median', 'trimmed_mean', 'geometric_median'"),
        ({"rule": {"rule": "median", "share": 0.1}}, "share\n.*not permitted"),
        ({"clip_norm": 0}, "clip_norm\n.*greater than 0"),
        ({"clip_norm": float("inf")}, "clip_norm\n.*finite"),
        ({"clip": 1}, "clip\n.*not permitted"),
        ({"server_optimizer": {"optimizer": "sgd"}}, "'sgd'.*'adam', 'yogi', 'adagrad', 'openfl_adam', .*"),
        ({"server_optimizer": {"optimizer": "adam", "learning_rate": 0}}, "learning_rate\n.*greater than 0"),
        ({"server_optimizer": {"optimizer": "adam", "betas": [0.9, 1]}}, "betas.1\n.*less than 1"),
        ({"server_optimizer": {"optimizer": "openfl_yogi", "betas": [0.9, 0.4]}}, "betas.1\n.*equal to 0.5"),
        ({"server_optimizer": {"optimizer": "adagrad", "epsilon": 0}}, "epsilon\n.*greater than 0"),
        ({"server_optimizer": {"optimizer": "openfl_adagrad", "initial_accumulator_value": -1}}, "equal to 0"),
        ({"server_optimizer": {"optimizer": "adagrad", "betas": [0.9, 0.9]}}, "betas\n.*not permitted"),
    ],
)
def test_a_choice_that_cannot_be_right_is_refused(content, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Aggregation.model_validate(content)


def test_torch_and_scikit_learn_stay_unloaded():
    code = "import sys, openfl_audio.protocol.aggregation; print({'torch', 'sklearn'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout == "set()\n"


@pytest.mark.parametrize(
    ("share", "clips", "expected"),
    [
        (None, [1, 2, 7], [1, 2, 7]),
        (0.5, [10**9, 30, 10], [40, 30, 10]),
        (0.4, [10, 9, 1], [2, 2, 1]),
        (0.4, [2, 2, 1], [2, 2, 1]),
        (0.5, [10, 1], [1, 1]),
        (0.3, [10, 3, 2], [2, 2, 2]),
        (0.5, [7], [7]),
    ],
)
def test_no_update_has_more_than_the_largest_share_of_the_weight(share, clips, expected):
    weights = Aggregation(max_share=share).weights(clips)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_rules_without_weights_have_none_to_limit():
    assert Aggregation(rule=Median(), max_share=0.1).weights([1, 99]) == [1, 99]


def test_a_trimmed_mean_of_no_share_trims_nobody():
    with pytest.raises(ValueError, match="share 0 cuts nothing off"):
        TrimmedMean(share=0).check_number(100)


@pytest.mark.parametrize(("share", "least"), [(0.1, 10), (0.29, 4), (0.4, 3), (0.49, 3)])
def test_the_least_number_of_updates_that_is_named_is_the_least_that_is_trimmed(share, least):
    with pytest.raises(ValueError, match=f"it takes {least} updates"):
        TrimmedMean(share=share).check_number(least - 1)
    TrimmedMean(share=share).check_number(least)
