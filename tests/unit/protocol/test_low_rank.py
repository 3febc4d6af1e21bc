"""Aggregation of adapters: what each rule loses of the mean of their products, in memory and from files."""

from pathlib import Path

import numpy as np
import pytest

from openfl_audio.director.aggregate import Contribution, aggregate_files
from openfl_audio.errors import DefinitionError
from openfl_audio.protocol.aggregate import Aggregator
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.low_rank import (
    ERROR,
    FACTOR_A,
    FACTOR_B,
    RESIDUAL,
    LoraResidual,
    LoraSvd,
    find_pairs,
    is_given,
    stack,
)
from openfl_audio.protocol.rules import Mean, Median
from openfl_audio.protocol.server_optimizers import FedAdam
from openfl_audio.protocol.tensors import TensorFile, Tensors, write_tensors

OUT, IN, RANK = 12, 9, 3
A, B, R = (f"layer{end}" for end in (FACTOR_A, FACTOR_B, RESIDUAL))
CLIPS = [3, 50, 7]
SHARES = np.array(CLIPS) / sum(CLIPS)


def make_model(residual: bool = True) -> Tensors:
    generator = np.random.default_rng(0)
    tensors = {A: generator.normal(size=(RANK, IN)), B: generator.normal(size=(OUT, RANK)), "head": np.ones((4, 2))}
    if residual:
        tensors[R] = generator.normal(size=(OUT, IN))
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()} | {"steps": np.array(1)}


def make_updates(frozen_a: bool = False) -> list[Tensors]:
    """Random adapters; with `frozen_a` all have the A of the model."""
    updates = []
    for seed in range(1, 4):
        generator = np.random.default_rng(seed)
        update = {A: generator.normal(size=(RANK, IN)), B: generator.normal(size=(OUT, RANK)), "head": np.ones((4, 2))}
        update = {name: tensor.astype(np.float32) for name, tensor in update.items()} | {"steps": np.array(seed)}
        updates.append(update | ({A: make_model()[A]} if frozen_a else {}))
    return updates


def effective(model: Tensors) -> np.ndarray:
    """Return the sum that the adapter adds to the layer's weight."""
    return model.get(R, np.zeros((OUT, IN))).astype(float) + model[B].astype(float) @ model[A].astype(float)


def wanted(model: Tensors, updates: list[Tensors]) -> np.ndarray:
    products = [update[B].astype(float) @ update[A].astype(float) for update in updates]
    return model.get(R, np.zeros((OUT, IN))) + np.tensordot(SHARES, products, 1)


def in_memory(model: Tensors, updates: list[Tensors], aggregation: Aggregation) -> tuple[Tensors, dict[str, float]]:
    aggregator = Aggregator(model, aggregation, [R])
    for update, clips in zip(updates, CLIPS, strict=True):
        aggregator.add(update, clips, "refused")
    told = aggregator.finish_round()
    return aggregator.model, told


def from_files(
    folder: Path, model: Tensors, updates: list[Tensors], aggregation: Aggregation
) -> tuple[Tensors, dict[str, float]]:
    write_tensors(folder / "model", model, {})
    contributions = []
    for index, (update, clips) in enumerate(zip(updates, CLIPS, strict=True)):
        write_tensors(folder / f"{index}", update, {})
        contributions.append(Contribution(folder / f"{index}", clips))
    target = folder / "next"
    told = aggregate_files(
        folder / "model", contributions, aggregation, 0, [R], None, target, folder / "state", {}, outdated=None
    )
    with TensorFile(target) as file:
        return file.load(), told


def lost(model: Tensors, updates: list[Tensors], rule: Mean | LoraResidual | LoraSvd) -> float:
    """Share of the mean product that a rule loses."""
    found, _ = in_memory(model, updates, Aggregation(rule=rule))
    mean = wanted(model, updates)
    return float(np.linalg.norm(effective(found) - mean) / np.linalg.norm(mean - model.get(R, 0.0)))


def test_errors_on_random_adapters_are_those_that_each_rule_promises():
    plain, updates = make_model(residual=False), make_updates()
    of_mean, of_svd = lost(plain, updates, Mean()), lost(plain, updates, LoraSvd())
    # Both have rank 3, of which the truncation is the best there is: Eckart and Young.
    values = np.linalg.svd(wanted(plain, updates), compute_uv=False)
    assert of_svd == pytest.approx(np.linalg.norm(values[RANK:]) / np.linalg.norm(values), rel=1e-5)
    assert 0.05 < of_svd < of_mean
    assert lost(make_model(), updates, LoraResidual()) < 1e-6  # exact, but for float32
    assert lost(plain, make_updates(frozen_a=True), Mean()) < 1e-6  # FFA-LoRA: exact
    assert of_mean > 0.2
    left, right = stack([(update[A], update[B]) for update in updates], SHARES)
    assert left.shape == (OUT, 3 * RANK)
    np.testing.assert_allclose(left @ right, wanted(plain, updates), rtol=1e-12)  # stacking: exact at rank n r


def test_a_residual_keeps_what_earlier_rounds_added_and_factors_are_their_means():
    model, updates = make_model(), make_updates()
    found, told = in_memory(model, updates, Aggregation(rule=LoraResidual()))
    np.testing.assert_allclose(found[A], np.tensordot(SHARES, [u[A] for u in updates], 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(effective(found), wanted(model, updates), rtol=1e-4, atol=1e-5)
    assert told == {ERROR: 0.0}


def test_the_truncation_tells_its_error_and_leaves_a_its_size():
    model, updates = make_model(residual=False), make_updates()
    found, told = in_memory(model, updates, Aggregation(rule=LoraSvd()))
    assert told[ERROR] == pytest.approx(lost(model, updates, LoraSvd()), rel=1e-5)
    gram = found[A].astype(float) @ found[A].T
    np.testing.assert_allclose(gram, np.eye(RANK) * gram[0, 0], atol=1e-4)
    assert np.linalg.norm(found[A]) == pytest.approx(np.linalg.norm(model[A]), rel=1e-5)


def test_adapters_that_are_zero_can_still_learn_after_a_truncation():
    model = make_model(residual=False)
    updates = [update | {B: np.zeros((OUT, RANK), np.float32)} for update in make_updates()]
    found, told = in_memory(model, updates, Aggregation(rule=LoraSvd()))
    assert told == {ERROR: 0.0}
    assert not found[B].any()
    assert np.linalg.matrix_rank(found[A]) == RANK  # not zero as well, which no gradient would leave


def test_other_tensors_become_their_weighted_mean_and_counters_their_largest():
    model, updates = make_model(), make_updates()
    for number, update in enumerate(updates):
        update["head"] = np.full((4, 2), number, np.float32)
    found, _ = in_memory(model, updates, Aggregation(rule=LoraResidual()))
    np.testing.assert_allclose(found["head"], np.full((4, 2), SHARES @ [0, 1, 2]), rtol=1e-6)
    assert found["steps"] == 3


AGGREGATIONS = {
    "mean": Aggregation(),
    "residual": Aggregation(rule=LoraResidual()),
    "svd": Aggregation(rule=LoraSvd()),
    "clipped residual": Aggregation(rule=LoraResidual(), clip_norm=5.0),
    "svd of bounded shares": Aggregation(rule=LoraSvd(), max_share=0.4),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_memory_and_files_come_to_the_same_bits(name, tmp_path):
    model, updates, aggregation = make_model("residual" in name), make_updates(), AGGREGATIONS[name]
    expected, told_by_files = from_files(tmp_path, model, updates, aggregation)
    found, told = in_memory(model, updates, aggregation)
    assert told == told_by_files
    assert found.keys() == expected.keys()
    for each, tensor in expected.items():
        assert found[each].tobytes() == tensor.tobytes(), each
        assert each == "head" or found[each].tobytes() != model[each].tobytes(), each


def test_what_has_no_adapters_of_the_kind_is_refused():
    names = list(make_model(residual=False))
    Aggregation(rule=LoraSvd()).check_names(names)
    with pytest.raises(ValueError, match="'lora_svd' combines the products of adapters, and the model trains none"):
        Aggregation(rule=LoraSvd()).check_names([B, "head"])  # FFA-LoRA
    with pytest.raises(ValueError, match="'lora_residual' needs adapters with residual=True, and 'layer.lora_A"):
        Aggregation(rule=LoraResidual()).check_names(names)
    with pytest.raises(ValueError, match="residuals, which rule 'median' leaves at zero: take 'lora_residual'"):
        Aggregation(rule=Median()).check_names(make_model())
    with pytest.raises(DefinitionError, match="'lora_svd' makes new factors in each round, towards which no server"):
        Aggregation(rule=LoraSvd(), server_optimizer=FedAdam())


def test_names_of_adapters():
    assert [pair.names for pair in find_pairs([B, A, R, "head", "other" + FACTOR_A])] == [[A, B, R]]
    assert [name for name in make_model() if is_given(name)] == [R]
