import errno
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import openfl_audio.director.aggregate
from openfl_audio.director.aggregate import Contribution, NoisySecretSum, aggregate_files, check_finite
from openfl_audio.errors import UpdateRefusedError
from openfl_audio.privacy.aggregate import SumAggregator
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.privacy.update import CHANGES_NAME, NUMBERS_NAME, encode_tensors
from openfl_audio.protocol.aggregate import check_layout
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.plan import TRAIN, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.rules import GeometricMedian, Mean, Median
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.server_optimizers import FedAdam
from openfl_audio.protocol.tensors import TensorFile, Tensors, describe, write_tensors
from openfl_audio.testing.noise import noise_that_repeats

SHAPES = {"weight": (7, 5), "bias": (), "running_mean": (11,), "none": (0, 3)}
CLIPS = [3, 50, 7]


def make_tensors(seed: int, dtype: str = "float32") -> Tensors:
    """Values of unequal magnitude, so that a sum in another order shows in its last bits."""
    generator = np.random.default_rng(seed)
    return {
        name: (generator.normal(size=shape) * 10.0 ** (seed % 3)).astype(dtype) for name, shape in SHAPES.items()
    } | {"steps": np.array(generator.integers(0, 100)), "seen": generator.integers(0, 2, size=4).astype(bool)}


def write_all(folder: Path, model: Tensors, updates: list[Tensors]) -> tuple[Path, list[Contribution]]:
    write_tensors(folder / "model", model, {})
    contributions = []
    for index, (update, clips) in enumerate(zip(updates, CLIPS, strict=False)):
        write_tensors(folder / f"update-{index}", update, {"envoy": index})
        contributions.append(Contribution(folder / f"update-{index}", clips))
    return folder / "model", contributions


def load(path: Path) -> Tensors:
    with TensorFile(path) as file:
        return file.load()


def aggregate_once(
    folder: Path,
    model: Tensors,
    updates: list[Tensors],
    aggregation: Aggregation | None = None,
    untrained: tuple[str, ...] = (),
) -> Tensors:
    current, contributions = write_all(folder, model, updates)
    target = folder / "target"
    aggregate_files(
        current, contributions, aggregation or Aggregation(), 0, untrained, None, target, folder / "state", {"n": 1}
    )
    return load(target)


def float_names(tensors: Tensors) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.dtype.kind == "f"]


def weighted_mean(model: Tensors, updates: list[Tensors], name: str) -> np.ndarray:
    """The model and its mean change, summed in float32 in the order of the updates, as the aggregation promises."""
    changes = [update[name].astype(np.float32) - model[name] for update in updates]
    total = sum(np.float32(clips) * change for clips, change in zip(CLIPS, changes, strict=True))
    return model[name] + total / np.float32(sum(CLIPS))


def distance(model: Tensors, update: Tensors, names: list[str]) -> float:
    return float(np.sqrt(sum(((update[n].astype(float) - model[n].astype(float)) ** 2).sum() for n in names)))


@pytest.fixture
def model() -> Tensors:
    return make_tensors(0)


@pytest.fixture
def updates() -> list[Tensors]:
    return [make_tensors(seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("slice_items", [1, 4, 1 << 18])
def test_the_next_model_adds_the_mean_change_weighted_by_clips_to_the_bit(
    tmp_path, monkeypatch, model, updates, slice_items
):
    monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", slice_items)
    result = aggregate_once(tmp_path, model, updates)
    for name in float_names(model):
        assert result[name].dtype == np.float32
        assert result[name].shape == SHAPES[name]
        np.testing.assert_array_equal(result[name], weighted_mean(model, updates, name))
        wide = np.average([update[name].astype(float) for update in updates], axis=0, weights=CLIPS)
        # Some roundings of float32, of values of up to 200.
        np.testing.assert_allclose(result[name], wide, rtol=0, atol=1e-4)


def test_the_file_does_not_depend_on_slices_nor_threads(tmp_path, monkeypatch, model, updates):
    files = []
    for slice_items, threads in ((1 << 18, 1), (3, 1), (1, 4), (1 << 18, 4)):
        monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", slice_items)
        monkeypatch.setattr(openfl_audio.director.aggregate, "THREADS", threads)
        aggregation = Aggregation(clip_norm=1.0, server_optimizer=FedAdam())
        aggregate_once(tmp_path, model, updates, aggregation)
        files.append([(tmp_path / name).read_bytes() for name in ("target", "state")])
    assert all(file == files[0] for file in files)


def test_the_file_has_the_layout_of_the_model_and_the_metadata(tmp_path, model, updates):
    aggregate_once(tmp_path, model, updates)
    with TensorFile(tmp_path / "model") as before, TensorFile(tmp_path / "target") as after:
        assert after.header.entries == before.header.entries
        assert after.header.metadata == {"n": 1}
    assert not (tmp_path / "state").exists()


def test_counters_take_the_maximum_however_many_clips_they_come_from(tmp_path, model, updates):
    result = aggregate_once(tmp_path, model, updates)
    assert result["steps"] == max(update["steps"] for update in updates)
    assert result["steps"].dtype == np.int64
    np.testing.assert_array_equal(result["seen"], np.any([update["seen"] for update in updates], axis=0))


@pytest.mark.parametrize("slice_items", [2, 1 << 18])
def test_the_median_is_numpys_and_does_not_look_at_clips(tmp_path, monkeypatch, model, updates, slice_items):
    monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", slice_items)
    result = aggregate_once(tmp_path, model, updates, Aggregation(rule=Median()))
    for name in float_names(model):
        expected = np.median(np.array([update[name] for update in updates], float), axis=0)
        np.testing.assert_array_equal(result[name], expected.astype(np.float32))


def test_a_rule_that_needs_whole_tensors_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", 1)
    corners = [np.array(corner, np.float32) for corner in [(-1, 0), (1, 0), (0, 3)]]
    current, contributions = write_all(tmp_path, {"a": corners[0]}, [{"a": corner} for corner in corners])
    contributions = [Contribution(contribution.path, 1) for contribution in contributions]
    aggregation = Aggregation(rule=GeometricMedian())
    aggregate_files(current, contributions, aggregation, 0, [], None, tmp_path / "target", tmp_path / "state", {})
    # The point from which every two corners are seen under 120 degrees; coordinate by coordinate it would be (0, 0).
    np.testing.assert_allclose(load(tmp_path / "target")["a"], [0, 3**-0.5], atol=1e-5)


def test_clipping_shortens_the_parameters_changes_and_only_theirs(tmp_path, model, updates):
    parameters = [name for name in float_names(model) if name != "running_mean"]
    norms = [distance(model, update, parameters) for update in updates]
    limit = sorted(norms)[1] * 0.9  # one update stays as it is
    result = aggregate_once(tmp_path, model, updates, Aggregation(clip_norm=limit), untrained=("running_mean",))
    scales = [min(1.0, limit / norm) for norm in norms]
    assert sorted(scale < 1 for scale in scales) == [False, True, True]
    for name in parameters:
        moved = [model[name] + s * (u[name].astype(float) - model[name]) for s, u in zip(scales, updates, strict=True)]
        expected = sum(clips * value for clips, value in zip(CLIPS, moved, strict=True)) / sum(CLIPS)
        # Results are float32.
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-5)
    expected = weighted_mean(model, updates, "running_mean")
    np.testing.assert_array_equal(result["running_mean"], expected)


@pytest.mark.parametrize("slice_items", [3, 1 << 18])
def test_fedadam_takes_three_steps_through_its_state_files(tmp_path, monkeypatch, slice_items):
    monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", slice_items)
    rate, (beta1, beta2), epsilon = 0.1, (0.9, 0.99), 1e-3
    optimizer = FedAdam(learning_rate=rate, betas=(beta1, beta2), epsilon=epsilon)
    names = ["weight", "bias"]
    model = make_tensors(0)
    expected = {name: model[name].astype(float) for name in names}
    first = {name: np.zeros(SHAPES[name]) for name in names}
    second = {name: np.full(SHAPES[name], epsilon**2) for name in names}
    state = None
    for step in range(3):
        updates = [make_tensors(10 * step + seed) for seed in (1, 2, 3)]
        changes = {name: weighted_mean(model, updates, name) - expected[name] for name in names}
        running_mean = weighted_mean(model, updates, "running_mean")
        current, contributions = write_all(tmp_path, model, updates)
        target, target_state = tmp_path / f"{step}", tmp_path / f"{step}.state"
        aggregation = Aggregation(server_optimizer=optimizer)
        aggregate_files(current, contributions, aggregation, step, ["running_mean"], state, target, target_state, {})
        model, state = load(target), target_state
        for name in names:
            first[name] = beta1 * first[name] + (1 - beta1) * changes[name]
            second[name] = beta2 * second[name] + (1 - beta2) * changes[name] ** 2
            expected[name] = expected[name] + rate * first[name] / (np.sqrt(second[name]) + epsilon)
            # Models and moments are kept in float32.
            np.testing.assert_allclose(model[name], expected[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(model["running_mean"], running_mean)
    kept = load(state)
    assert kept.keys() == {f"{slot}.{name}" for slot in FedAdam.slots for name in ["weight", "bias", "none"]}
    np.testing.assert_allclose(kept["first_moment.weight"], first["weight"], rtol=1e-4, atol=1e-5)


def test_updates_in_float16_are_summed_wide_and_the_model_stays_float32(tmp_path, model):
    updates = [make_tensors(seed, "float16") for seed in (1, 2, 3)]
    result = aggregate_once(tmp_path, model, updates)
    for name in float_names(model):
        assert result[name].dtype == np.float32
        np.testing.assert_array_equal(result[name], weighted_mean(model, updates, name))


def test_an_unweighted_mean_does_not_look_at_clips(tmp_path, model, updates):
    result = aggregate_once(tmp_path, model, updates, Aggregation(rule=Mean(weighted=False)))
    expected = np.mean([update["weight"].astype(float) for update in updates], axis=0)
    np.testing.assert_allclose(result["weight"], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("slice_items", [3, 1 << 17])
def test_noisy_sums_are_decoded_as_in_memory_and_what_is_not_trained_stays(
    tmp_path, monkeypatch, model, updates, slice_items
):
    monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", slice_items)
    plan, model = noisy_plan(), {name: np.asarray(tensor) for name, tensor in model.items()}
    aggregator = SumAggregator(model, plan)
    aggregator.begin(2)
    write_tensors(tmp_path / "model", model, {})
    contributions = []
    with noise_that_repeats(1):
        for site, update in zip(plan.envoys, updates, strict=True):
            words = encode_tensors(plan, model, update, 1, 2, site)
            aggregator.add_words(words)
            write_tensors(
                tmp_path / site, {NUMBERS_NAME: np.zeros(3, np.uint64), CHANGES_NAME: words.values}, {"envoy": site}
            )
            contributions.append(Contribution(tmp_path / site, 0))
    aggregator.finish_round()
    secret = NoisySecretSum([], NoisySum.of(plan, describe(model, {}), 2))
    aggregate_files(
        tmp_path / "model", contributions, plan.aggregation, 0, plan.untrained, None,
        tmp_path / "target", tmp_path / "state", {}, secret=secret,
    )  # fmt: skip
    found = load(tmp_path / "target")
    for name, tensor in aggregator.model.items():
        np.testing.assert_array_equal(found[name], tensor)
    for name in ("running_mean", "steps", "seen"):
        np.testing.assert_array_equal(found[name], model[name])
    changed = (found["weight"] - model["weight"]).std()
    # Three sites, two of which are honest: their noise is for a bound of 100, and the mean is over three.
    assert 0.5 < changed / (0.5 * 100 * np.sqrt(3 / 2) / 3) < 1.5


def noisy_plan() -> ExperimentPlan:
    return ExperimentPlan(
        name="noisy", federation_uuid="", rounds=3, envoys=["a", "b", "c"], untrained=["running_mean"],
        tasks=[Task(name=TRAIN, function_name="fit", task_type="train")],
        best=BestModel(metric="accuracy", direction="max"), aggregation=Aggregation(rule=Mean(weighted=False)),
        privacy=SiteLevel(noise_multiplier=0.5, clip=100.0, delta=1e-5), secure_aggregation=SecureAggregation(),
    )  # fmt: skip


def test_one_update_alone_is_the_next_model_to_the_bit(tmp_path, model, updates):
    result = aggregate_once(tmp_path, model, updates[:1])
    for name, tensor in updates[0].items():
        np.testing.assert_array_equal(result[name], tensor)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 9])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(tmp_path, monkeypatch, dtype, fault, position):
    monkeypatch.setattr(openfl_audio.director.aggregate, "SLICE_ITEMS", 4)
    tensors = {"steps": np.array(3), "good": np.ones(10, dtype), "weight": np.ones((2, 5), dtype)}
    tensors["weight"].flat[position] = fault
    write_tensors(tmp_path / "update", tensors, {})
    with pytest.raises(UpdateRefusedError, match="the envoy's update: tensor 'weight' holds NaN or infinity"):
        check_finite(tmp_path / "update", "the envoy's update")


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 65504), ("float32", 3e38), ("float32", -3e38), ("float64", 1e308)]
)
def test_huge_values_pass_although_their_squares_overflow(tmp_path, dtype, value):
    tensors = {"weight": np.full((3, 3), value, dtype), "counter": np.array([-(2**63), 2**63 - 1])}
    write_tensors(tmp_path / "update", tensors, {})
    check_finite(tmp_path / "update", "the update")


LAYOUTS = {
    "a tensor is missing": ({"steps": np.array(1)}, r"the update: tensors missing \['weight'\], unknown \[\]"),
    "a tensor is unknown": (
        {"weight": np.zeros(2, np.float32), "steps": np.array(1), "extra": np.zeros(1)},
        r"missing \[\], unknown \['extra'\]",
    ),
    "a wrong shape": (
        {"weight": np.zeros(3, np.float32), "steps": np.array(1)},
        r"tensor 'weight' is float32\(3,\), not float32\(2,\)",
    ),
    "another shape of as many items": (
        {"weight": np.zeros((1, 2), np.float32), "steps": np.array(1)},
        r"tensor 'weight' is float32\(1, 2\), not float32\(2,\)",
    ),
    "a wrong type": ({"weight": np.zeros(2), "steps": np.array(1)}, r"tensor 'weight' is float64\(2,\), not float32"),
    "a counter that is a float": (
        {"weight": np.zeros(2, np.float32), "steps": np.array(1.0)},
        r"tensor 'steps' is float64\(\), not int64\(\)",
    ),
}


@pytest.mark.parametrize("fault", LAYOUTS)
def test_an_update_of_another_layout_is_refused_and_the_tensor_named(fault):
    tensors, sentence = LAYOUTS[fault]
    expected = describe({"weight": np.zeros(2, np.float32), "steps": np.array(0)}, {})
    with pytest.raises(UpdateRefusedError, match=sentence):
        check_layout(describe(tensors, {}), expected, "the update")


def test_an_update_of_the_same_layout_passes_whatever_its_metadata():
    model = {"weight": np.zeros(2, np.float32), "steps": np.array(0)}
    check_layout(describe(dict(reversed(model.items())), {"envoy": "a"}), describe(model, {}), "the update")


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch, rule):
    monkeypatch.setattr(openfl_audio.director.aggregate, "THREADS", 2)
    model = {f"layer-{index}": np.full((1250, 1000), index, np.float32) for index in range(8)}  # 40 MB
    current, contributions = write_all(tmp_path, model, [model] * 3)
    model_bytes = current.stat().st_size
    del model
    aggregation = Aggregation.model_validate({"rule": {"rule": rule}})
    tracemalloc.start()
    try:
        for contribution in contributions:
            check_finite(contribution.path, "the update")
        aggregate_files(current, contributions, aggregation, 0, [], None, tmp_path / "target", tmp_path / "state", {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model_bytes > 40e6
    # A slice is 256 KB in float32. Each thread holds six for a mean; for a median one of the model, two of each of the
    # updates, and two in float64. All updates together are 120 MB.
    assert peak < 2 * 8 * 8 * openfl_audio.director.aggregate.SLICE_ITEMS
    for name, tensor in load(tmp_path / "target").items():
        assert (tensor == int(name.removeprefix("layer-"))).all()


def test_a_disk_that_fails_while_a_model_is_written_leaves_no_model(tmp_path, monkeypatch):
    """The kernel tells of a fault once: it is not lost if the sync beside the writing is told."""
    told = threading.Event()

    def fdatasync(descriptor: int) -> None:
        told.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    def write() -> None:
        header = describe({"weight": np.zeros(4, np.float32)}, {})
        with openfl_audio.director.aggregate._Target(tmp_path / "model", header) as target:
            target.write("weight", 0, np.ones(4, np.float32))
            assert told.wait(10)

    with pytest.raises(OSError, match="Input/output error"):
        write()
    assert not (tmp_path / "model").exists()
