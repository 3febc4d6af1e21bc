from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from openfl_audio.director.aggregate import Contribution, aggregate_files, check_finite
from openfl_audio.errors import NotFiniteError, TooLargeError, UpdateRefusedError
from openfl_audio.privacy.aggregate import SiteAggregator
from openfl_audio.privacy.noise import repeatable_noise
from openfl_audio.privacy.site_level import SiteRound
from openfl_audio.protocol.aggregate import Aggregator
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.plan import TRAIN, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.privacy import AdaptiveClip, SiteLevel
from openfl_audio.protocol.rules import GeometricMedian, Mean, Median, TrimmedMean
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.server_optimizers import (
    FedAdagrad,
    FedAdam,
    FedLamb,
    FedYogi,
    OpenFLAdagrad,
    OpenFLAdam,
    OpenFLYogi,
)
from openfl_audio.protocol.tensors import TensorFile, Tensors, write_tensors

# The long one is cut into slices and blocks.
FLOATS = {
    "weight": ((7, 5), "f4"), "bias": ((), "f4"), "long": ((70_001,), "f4"), "none": ((0, 3), "f4"),
    "running_mean": ((11,), "f4"), "double": ((3,), "f8"), "half": ((4,), "f2"),
}  # fmt: skip
CLIPS = [3, 50, 7, 11]
UNTRAINED = ["running_mean", "double"]


def make_tensors(seed: int) -> Tensors:
    """Values of unequal magnitude, so that a sum in another order shows in its last bits."""
    generator = np.random.default_rng(seed)
    floats = {
        name: np.asarray(generator.normal(size=shape) * 10.0 ** (seed % 3), dtype)
        for name, (shape, dtype) in FLOATS.items()
    }
    return floats | {
        "steps": np.array(generator.integers(0, 100)),
        "seen": generator.integers(0, 2, size=4).astype(bool),
        "counts": generator.integers(0, 9, size=(2, 3)),
    }


def updates_of(round_number: int) -> list[Tensors]:
    return [make_tensors(10 * round_number + index + 1) for index in range(len(CLIPS))]


def as_float16(tensors: Tensors) -> Tensors:
    return {name: tensor.astype("f2") if tensor.dtype.kind == "f" else tensor for name, tensor in tensors.items()}


def folded_from_files(
    folder: Path,
    model: Tensors,
    rounds: Sequence[list[Tensors]],
    aggregation: Aggregation,
    site: Callable[[int], SiteRound | None] = lambda number: None,
) -> tuple[Tensors, Tensors]:
    """Model and moments after `rounds`, by the director's aggregation of files."""
    current, state = folder / "model", None
    write_tensors(current, model, {})
    for number, updates in enumerate(rounds):
        contributions = []
        for index, update in enumerate(updates):
            path = folder / f"{number}-{index}"
            write_tensors(path, update, {})
            contributions.append(Contribution(path, CLIPS[index]))
        target, target_state = folder / f"{number}", folder / f"{number}-state"
        aggregate_files(
            current, contributions, aggregation, number, UNTRAINED, state, target, target_state, {}, site=site(number)
        )
        current, state = target, target_state if aggregation.server_optimizer else None
    return load(current), load(state) if state else {}


def load(path: Path) -> Tensors:
    with TensorFile(path) as file:
        return file.load()


def folded(model: Tensors, rounds: Sequence[list[Tensors]], aggregation: Aggregation) -> Aggregator:
    result = Aggregator(model, aggregation, UNTRAINED)
    for updates in rounds:
        for update, clips in zip(updates, CLIPS, strict=False):
            result.add(update, clips, "refused")
        result.finish_round()
    return result


def assert_same(found: Tensors, expected: Tensors) -> None:
    """To the bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


AGGREGATIONS = {
    "mean": Aggregation(),
    "mean of bounded shares": Aggregation(max_share=0.3),
    "plain mean": Aggregation(rule=Mean(weighted=False)),
    "median": Aggregation(rule=Median()),
    "trimmed mean": Aggregation(rule=TrimmedMean(share=0.3)),
    "geometric median": Aggregation(rule=GeometricMedian()),
    "weighted geometric median": Aggregation(rule=GeometricMedian(weighted=True)),
    "adam": Aggregation(server_optimizer=FedAdam(learning_rate=0.1)),
    "yogi": Aggregation(server_optimizer=FedYogi(learning_rate=0.1)),
    "adagrad": Aggregation(server_optimizer=FedAdagrad(learning_rate=0.1)),
    "lamb": Aggregation(server_optimizer=FedLamb(learning_rate=0.1)),
    "openfl_adam": Aggregation(server_optimizer=OpenFLAdam(learning_rate=0.1)),
    "openfl_yogi": Aggregation(server_optimizer=OpenFLYogi(learning_rate=0.1, initial_accumulator_value=0.01)),
    "openfl_adagrad": Aggregation(server_optimizer=OpenFLAdagrad(learning_rate=0.1)),
    "median and adam": Aggregation(rule=Median(), server_optimizer=FedAdam()),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_three_rounds_in_memory_are_those_of_the_director_to_the_bit(tmp_path, name):
    model, rounds = make_tensors(0), [updates_of(number) for number in range(3)]
    expected, moments = folded_from_files(tmp_path, model, rounds, AGGREGATIONS[name])
    found = folded(model, rounds, AGGREGATIONS[name])
    assert_same(found.model, expected)
    assert found.aggregations == 3
    assert found.moments.keys() == moments.keys()
    for slot, moment in moments.items():
        assert found.moments[slot].tobytes() == moment.tobytes(), slot


# The initial value of OpenFL's Yogi here is that of its first moment too: it moves by itself.
@pytest.mark.parametrize("name", [name for name in AGGREGATIONS if name != "openfl_yogi"])
def test_weights_that_no_client_changed_stay_as_they_are(name):
    """Adam and its like divide a change by its size: rounding errors of a sum would become steps."""
    model = make_tensors(0)
    found = folded(model, [[model] * 4] * 20, AGGREGATIONS[name])
    assert_same(found.model, model)


@pytest.mark.parametrize("name", ["mean", "trimmed mean", "adam"])
def test_updates_in_float16_are_summed_wide_into_the_models_own_types(tmp_path, name):
    model, rounds = make_tensors(0), [[as_float16(update) for update in updates_of(number)] for number in range(2)]
    expected, _ = folded_from_files(tmp_path, model, rounds, AGGREGATIONS[name])
    assert_same(folded(model, rounds, AGGREGATIONS[name]).model, expected)


@pytest.mark.parametrize("rule", [Mean(), Median()])
@pytest.mark.parametrize("convert", [dict, as_float16])
def test_clipped_updates_are_those_of_the_director(tmp_path, rule, convert):
    model, rounds = make_tensors(0), [[convert(update) for update in updates_of(number)] for number in range(2)]
    # Norms are 300 to 30,000: some are clipped.
    aggregation = Aggregation(rule=rule, clip_norm=1000.0)
    expected, _ = folded_from_files(tmp_path, model, rounds, aggregation)
    found = folded(model, rounds, aggregation).model
    unclipped = folded(model, rounds, Aggregation(rule=rule)).model
    assert np.abs(unclipped["weight"] - expected["weight"]).max() > 0.1, "one could not tell"
    assert_same(found, expected)


SITE = {"noise_multiplier": 0.5, "clip": 1000.0, "delta": 1e-5}
SITE_LEVELS = {
    "flat": SiteLevel(**SITE),
    "per layer": SiteLevel(**SITE, clipping="per_layer"),
    "per dimension": SiteLevel(**SITE, clipping="per_dimension"),
    "adaptive": SiteLevel(**SITE, adaptive=AdaptiveClip(count_noise=1.0)),
}


def site_round(level: SiteLevel, number: int, clip: float) -> SiteRound:
    sizes = {name: tensor.size for name, tensor in make_tensors(0).items() if tensor.dtype.kind == "f"}
    trained = {name: size for name, size in sizes.items() if name not in UNTRAINED}
    return SiteRound(level, 5, clip, trained, repeatable_noise(0, "director", number))


@pytest.mark.parametrize("optimizer", [None, FedAdam(learning_rate=0.1)])
@pytest.mark.parametrize("name", SITE_LEVELS)
def test_noise_on_clipped_updates_in_memory_is_that_of_the_director_to_the_bit(tmp_path, name, optimizer):
    level, model, rounds = SITE_LEVELS[name], make_tensors(0), [updates_of(number) for number in range(3)]
    aggregation = Aggregation(rule=Mean(weighted=False), server_optimizer=optimizer)
    sites, clips = [], [level.clip]

    def begin(number: int) -> SiteRound:
        if sites:
            clips.append(sites[-1].next_clip())
        sites.append(site_round(level, number, clips[-1]))
        return sites[-1]

    expected, _ = folded_from_files(tmp_path, model, rounds, aggregation, begin)
    found, clip = SiteAggregator(model, aggregation, UNTRAINED), level.clip
    for number, updates in enumerate(rounds):
        site = site_round(level, number, clip)
        found.begin(site)
        for update, size in zip(updates, CLIPS, strict=True):
            found.add(update, size, "refused")
        found.finish_round()
        clip = site.next_clip()
    assert_same(found.model, expected)
    assert (len({*clips}) == 3) == (name == "adaptive")
    for kept in (*UNTRAINED, "steps", "seen", "counts"):
        assert expected[kept].tobytes() == model[kept].tobytes(), "what is not trained would leave without noise"


def test_noise_is_added_to_the_mean_of_clipped_changes_over_the_planned_number(tmp_path):
    level, model, updates = SITE_LEVELS["flat"], make_tensors(0), updates_of(0)
    after, _ = folded_from_files(
        tmp_path, model, [updates], Aggregation(rule=Mean(weighted=False)), lambda _: site_round(level, 0, 1000.0)
    )
    trained = ["weight", "bias", "long", "none", "half"]
    mean, noise = np.zeros(70_001), repeatable_noise(0, "director", 0).normal(4 + 70_001 + 35 + 1)
    for update in updates:
        changes = {name: update[name].astype("f8") - model[name].astype("f8") for name in trained}
        norm = np.sqrt(sum((change**2).sum() for change in changes.values()))
        mean += changes["long"] * min(1, 1000 / norm) / 5
    # In the order of names: bias, half, long.
    expected = model["long"] + mean + 0.5 * 1000 * noise[5 : 5 + 70_001] / 5
    np.testing.assert_allclose(after["long"], expected, rtol=1e-5, atol=1e-4)


def test_an_update_that_is_not_finite_is_refused_before_it_counts_in_a_sum_with_noise():
    found = SiteAggregator(make_tensors(0), Aggregation(rule=Mean(weighted=False)), UNTRAINED)
    found.begin(site_round(SITE_LEVELS["flat"], 0, 1.0))
    update = make_tensors(1)
    update["long"][3] = np.nan
    with pytest.raises(UpdateRefusedError, match="tensor 'long' holds NaN"):
        found.add(update, 1, "refused")
    assert not found._totals["bias"].any()


def site_plan(**changes) -> ExperimentPlan:
    arguments = {
        "name": "toy",
        "federation_uuid": "",
        "rounds": 1,
        "tasks": [Task(name=TRAIN, function_name="fit", task_type="train")],
        "best": BestModel(metric="accuracy", direction="max"),
        "envoys": ["a", "b"],
        "aggregation": Aggregation(rule=Mean(weighted=False)),
        "privacy": SITE_LEVELS["flat"],
    }
    return ExperimentPlan(**arguments | changes)


IN_SECRET = SiteLevel(noise_multiplier=2.0, clip=0.1, delta=1e-5)


def secret(**changes) -> dict:
    level = {"noise_multiplier": 2.0, "clip": 0.1, "delta": 1e-5} | changes
    return {
        "envoys": ["a", "b", "c", "d", "e"],
        "privacy": SiteLevel(**level),
        "secure_aggregation": SecureAggregation(),
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"envoys": None}, "divides by the number that was planned: give envoys"),
        (
            {"aggregation": Aggregation()},
            r"every site alike: give aggregation=Aggregation\(rule=Mean\(weighted=False\)\)",
        ),
        ({"aggregation": Aggregation(rule=Median())}, "counts every site alike"),
        ({"aggregation": Aggregation(rule=Mean(weighted=False), clip_norm=1.0)}, "leave out clip_norm and max_share"),
        ({"privacy": IN_SECRET.model_copy(update={"colluders": 1})}, "colluders are those of secure aggregation"),
        (secret(clipping="per_layer"), "clips its whole change to a bound that stays: use clipping flat"),
        (secret(adaptive=AdaptiveClip(count_noise=9.0)), "to a bound that stays: .* leave out adaptive"),
        (secret(colluders=3), "colluders is 3: secure aggregation of 5 envoys bears 2"),
        (
            secret() | {"secure_aggregation": SecureAggregation(bits=16, value_range=2.0)},
            "says how changes become integers: leave out bits and value_range",
        ),
        (
            secret() | {"secure_aggregation": SecureAggregation(ranges={"a": 1.0}, largest_weight=7)},
            "leave out ranges and largest_weight",
        ),
    ],
)
def test_a_plan_that_cannot_have_privacy_of_sites_is_refused_in_a_sentence(changes, sentence):
    site_plan().check_site_level()
    with pytest.raises(ValueError, match=sentence):
        site_plan(**changes).check_site_level()
    site_plan(**changes | {"privacy": None}).check_site_level()


def test_noise_is_planned_for_the_least_survivors_that_do_not_collude():
    five = ["a", "b", "c", "d", "e"]
    found = [site_plan(**secret(colluders=number)).honest_survivors for number in (None, 0, 1, 2)]
    assert found == [2, 4, 3, 2]
    for changes in ({}, {"privacy": None}, {"secure_aggregation": SecureAggregation(), "privacy": None}):
        assert site_plan(**{"envoys": five} | changes).honest_survivors is None
    site_plan(**secret()).check_site_level()


def test_an_integer_counter_takes_the_maximum_and_is_forgotten_with_the_round():
    model = {"weight": np.zeros(2, np.float32), "steps": np.array(0)}
    result = Aggregator(model, Aggregation())
    for highest, steps in ((9, (2, 9, 4)), (3, (3, 1))):
        for step in steps:
            result.add({"weight": np.ones(2, np.float32), "steps": np.array(step)}, 1, "refused")
        result.finish_round()
        assert result.model["steps"] == highest
        assert result.model["steps"].shape == ()


@pytest.mark.parametrize("name", ["mean", "median", "geometric median", "adam"])
def test_arrays_may_change_once_they_are_added(name):
    model, updates = make_tensors(0), updates_of(0)
    expected = folded(model, [updates], AGGREGATIONS[name])
    found = Aggregator(model, AGGREGATIONS[name], UNTRAINED)
    for update, clips in zip(updates_of(0), CLIPS, strict=True):
        found.add(update, clips, "refused")
        for tensor in update.values():
            tensor[...] = 1  # of a client that comes later
    found.finish_round()
    assert_same(found.model, expected.model)


def test_the_model_that_it_begins_with_stays_as_it_is():
    model = make_tensors(0)
    folded(model, [updates_of(0)], Aggregation())
    assert_same(model, make_tensors(0))


def strided(tensor: np.ndarray) -> np.ndarray:
    """The same values, every second item in memory."""
    return np.repeat(tensor, 2, axis=-1)[..., ::2] if tensor.ndim else tensor


def turned(tensor: np.ndarray) -> np.ndarray:
    """The same values, in the order of columns."""
    return tensor.copy(order="F")


def locked(tensor: np.ndarray) -> np.ndarray:
    """Return an array that cannot be written to, as Ray's shared memory gives it."""
    tensor.setflags(write=False)
    return tensor


@pytest.mark.parametrize("layout", [strided, turned, locked])
@pytest.mark.parametrize("name", ["mean", "median"])
def test_how_an_array_lies_in_memory_is_of_no_consequence(layout: Callable, name: str):
    model, updates = make_tensors(0), updates_of(0)
    expected = folded(model, [updates], AGGREGATIONS[name]).model
    lying = [{key: layout(tensor) for key, tensor in update.items()} for update in updates]
    found = folded({key: layout(tensor) for key, tensor in model.items()}, [lying], AGGREGATIONS[name]).model
    assert_same(found, expected)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("tensor", "position"), [("weight", 34), ("bias", 0), ("long", 70_000), ("running_mean", 3), ("half", 0)]
)
@pytest.mark.parametrize("name", ["mean", "median"])
def test_an_update_that_is_not_finite_is_refused_and_leaves_no_trace(name, tensor, position, fault):
    model, updates = make_tensors(0), updates_of(0)
    expected = folded(model, [updates], AGGREGATIONS[name]).model
    bad = make_tensors(77)
    bad[tensor].reshape(-1)[position] = fault
    bad |= {"steps": np.array(10**6), "seen": np.ones(4, bool), "counts": np.full((2, 3), 10**6)}
    for place in (0, 2, len(updates)):
        found = Aggregator(model, AGGREGATIONS[name], UNTRAINED)
        for index in range(len(updates) + 1):
            if index == place:
                with pytest.raises(
                    UpdateRefusedError, match=f"^the update of x: tensor '{tensor}' holds NaN or infinity$"
                ):
                    found.add(bad, 1000, "the update of x")
            if index < len(updates):
                found.add(updates[index], CLIPS[index], "refused")
        found.finish_round()
        assert_same(found.model, expected)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1.1e15])
def test_a_value_that_could_make_the_model_infinite_is_refused_by_name_and_leaves_no_trace(tmp_path, value):
    model = {"weight": np.zeros(3, np.float32)}
    result = Aggregator(model, Aggregation())
    update = {"weight": np.array([1, value, 1], np.float32)}
    with pytest.raises(TooLargeError, match=r"^the update of x: tensor 'weight' holds .*, more than 1e\+15"):
        result.add(update, 10**9, "the update of x")
    write_tensors(tmp_path / "model", model, {})
    write_tensors(tmp_path / "update", update, {})
    with TensorFile(tmp_path / "model") as current, pytest.raises(TooLargeError, match="'weight' holds"):
        check_finite(tmp_path / "update", "the update of x", model=current)
    result.add({"weight": np.ones(3, np.float32)}, 1, "refused")
    result.finish_round()
    np.testing.assert_array_equal(result.model["weight"], 1)


def test_a_huge_constant_of_the_model_is_no_fault_of_the_update(tmp_path):
    model = {"mask": np.array([np.finfo(np.float32).min, 0], np.float32)}
    result = Aggregator(model, Aggregation())
    result.add({"mask": model["mask"] + np.array([0, 1], np.float32)}, 3, "refused")
    result.finish_round()
    np.testing.assert_array_equal(result.model["mask"], [np.finfo(np.float32).min, 1])
    write_tensors(tmp_path / "model", model, {})
    with TensorFile(tmp_path / "model") as current:
        check_finite(tmp_path / "model", "x", model=current)


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_a_step_that_leaves_the_models_type_is_an_error_and_no_model(tmp_path, dtype):
    model, update = {"weight": np.zeros(3, dtype)}, {"weight": np.ones(3, dtype)}
    aggregation = Aggregation(server_optimizer=FedAdam(learning_rate=1e39))
    with pytest.raises(NotFiniteError, match="lower the server optimizer's learning rate"):
        folded(model, [[update]], aggregation)
    with pytest.raises(NotFiniteError, match="lower the server optimizer's learning rate"):
        folded_from_files(tmp_path, model, [[update]], aggregation)


def test_huge_values_are_no_infinities():
    model = {"weight": np.zeros(3, np.float32)}
    update = {"weight": np.array([9e14, -9e14, 1], np.float32)}
    result = Aggregator(model, Aggregation())
    for _ in range(2):
        result.add(update, 10**8, "refused")
    result.finish_round()
    np.testing.assert_allclose(result.model["weight"], update["weight"], rtol=2e-7)


@pytest.mark.parametrize("name", ["mean", "geometric median", "adam"])
@pytest.mark.parametrize("names", [(), ("none",), ("steps",), ("bias",)])
def test_a_model_may_have_no_floats_or_nothing_at_all(tmp_path, name, names):
    model, updates = ({key: each[key] for key in names} for each in (make_tensors(0), make_tensors(1)))
    expected, _ = folded_from_files(tmp_path, model, [[updates]], AGGREGATIONS[name])
    assert_same(folded(model, [[updates]], AGGREGATIONS[name]).model, expected)


def test_it_goes_on_from_moments_and_the_number_of_rounds_before(tmp_path):
    model, rounds = make_tensors(0), [updates_of(number) for number in range(4)]
    aggregation = AGGREGATIONS["adam"]
    whole = folded(model, rounds, aggregation)
    first = folded(model, rounds[:2], aggregation)
    # As they come back from a file.
    moments = {name: moment.copy() for name, moment in first.moments.items()}
    second = Aggregator(first.model, aggregation, UNTRAINED, moments, first.aggregations)
    for updates in rounds[2:]:
        for update, clips in zip(updates, CLIPS, strict=True):
            second.add(update, clips, "refused")
        second.finish_round()
    assert_same(second.model, whole.model)
    assert_same(second.moments, whole.moments)
