import numpy as np
import pytest

from openfl_audio.protocol.rules import Mean
from openfl_audio.protocol.server_optimizers import (
    FedAdagrad,
    FedAdam,
    FedLamb,
    FedYogi,
    OpenFLAdagrad,
    OpenFLAdam,
    OpenFLYogi,
)

OPTIMIZERS = {
    "adam": FedAdam(),
    "yogi": FedYogi(),
    "adagrad": FedAdagrad(),
    "openfl_adam": OpenFLAdam(),
    "openfl_yogi": OpenFLYogi(),
    "openfl_adagrad": OpenFLAdagrad(),
}

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


def test_lamb_steps_as_far_as_the_tensor_is_long():
    """Worked out one value at a time from algorithm 2 of You et al.; a round's change is the negative gradient."""
    optimizer = FedLamb(learning_rate=0.1, weight_decay=0.01)
    values, state = [3.0, -4.0], {slot: np.zeros(2, np.float32) for slot in optimizer.slots}
    m, v = [0.0, 0.0], [0.0, 0.0]
    for t, combined in enumerate(([3.5, -4.1], [3.2, -3.0]), start=1):
        change = [c - x for c, x in zip(combined, values, strict=True)]
        m = [0.9 * old + 0.1 * d for old, d in zip(m, change, strict=True)]
        v = [0.999 * old + 0.001 * d * d for old, d in zip(v, change, strict=True)]
        r = [
            mi / (1 - 0.9**t) / ((vi / (1 - 0.999**t)) ** 0.5 + 1e-6) - 0.01 * x
            for mi, vi, x in zip(m, v, values, strict=True)
        ]
        length, step = (sum(each * each for each in every) ** 0.5 for every in (values, r))
        expected = [x + 0.1 * length / step * ri for x, ri in zip(values, r, strict=True)]
        found, state = optimizer.step(np.array(values), np.array(combined), state, t - 1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.linalg.norm(found - values) == pytest.approx(0.1 * np.linalg.norm(values))
        values = expected


def test_lamb_moves_a_tensor_of_zeros_and_leaves_one_that_did_not_change():
    optimizer = FedLamb(learning_rate=0.1)
    state = {slot: np.zeros(2, np.float32) for slot in optimizer.slots}
    moved, _ = optimizer.step(np.zeros(2), np.array([1.0, -1.0]), state, 0)
    np.testing.assert_allclose(moved, [0.1, -0.1], rtol=1e-5)
    still, _ = optimizer.step(np.ones(2), np.ones(2), state, 0)
    np.testing.assert_array_equal(still, np.ones(2))
