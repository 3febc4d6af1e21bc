"""Updates as words: where they lie, and that memory of the model that they take does not change them."""

from typing import Any

import numpy as np
import pytest

from openfl_audio.errors import UpdateRefusedError
from openfl_audio.privacy.fixed_point import BLOCK, Rounding, encode
from openfl_audio.privacy.update import encode_tensors, place_of_words
from openfl_audio.protocol.plan import BestModel, ExperimentPlan, Task
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Tensors, describe, tensors_in

SETTINGS = SecureAggregation(value_range=0.5, ranges={"a": 2.0}, largest_weight=10)
PLAN = ExperimentPlan(
    name="x",
    federation_uuid="uuid",
    rounds=1,
    tasks=[Task(name="train", function_name="train", task_type="train")],
    best=BestModel(metric="loss", direction="min"),
    envoys=["p", "q", "r"],
    secure_aggregation=SETTINGS,
)
GENERATOR = np.random.default_rng(0)
# More than one block, so that blocks are worked on side by side.
MODEL: Tensors = {
    "b": GENERATOR.normal(size=3 * BLOCK + 5).astype(np.float32),
    "a": GENERATOR.normal(size=(4, 7)).astype(np.float32),
    "steps": np.array(3),
}


def in_memory(model: Tensors) -> tuple[np.ndarray, Any]:
    """Return memory with a model, and its header."""
    header = describe(model, {})
    memory = np.empty(header.data_bytes, np.uint8)
    for name, tensor in tensors_in(memory, header).items():
        tensor[...] = model[name]
    return memory, header


def trained(model: Tensors) -> Tensors:
    return {
        name: tensor + np.random.default_rng(1).normal(size=tensor.shape).astype(tensor.dtype)
        for name, tensor in model.items()
    }


@pytest.mark.parametrize("clips", [0, 7, 20])
def test_words_in_the_models_place_are_those_in_other_memory(clips: int) -> None:
    memory, header = in_memory(MODEL)
    place, update = place_of_words(PLAN, header, memory), trained(MODEL)
    assert place is not None
    elsewhere = encode_tensors(PLAN, MODEL, update, clips, 2, "p")
    words = encode_tensors(PLAN, tensors_in(memory, header), update, clips, 2, "p", place)
    assert np.shares_memory(words.values, memory)
    np.testing.assert_array_equal(words.values, elsewhere.values)
    assert np.any(words.values) == (clips > 0)
    assert (words.weight, words.clipped, words.is_bounded) == (min(clips, 10), elsewhere.clipped, clips > 10)
    changes = {name: update[name].astype(np.float64) - MODEL[name] for name in "ab"}
    beyond = np.count_nonzero(np.abs(changes["a"]) > 2.0) + np.count_nonzero(np.abs(changes["b"]) > 0.5)
    assert words.clipped == (beyond if clips else 0)
    # Integers stay what they are.
    assert tensors_in(memory, header)["steps"] == 3


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(MODEL | {"an": np.zeros(3)}, id="some are wider"),
        pytest.param(MODEL | {"an": np.zeros(3, np.float16)}, id="some are narrower"),
        pytest.param({"a": np.zeros(3)}, id="all are wider"),
        pytest.param(MODEL | {"an": np.zeros(3, np.int32)}, id="integers are between them"),
        pytest.param({"steps": np.array(3)}, id="there are none"),
    ],
)
def test_words_have_memory_of_their_own_where_values_do_not_lie_as_words_do(model: Tensors) -> None:
    memory, header = in_memory(model)
    assert place_of_words(PLAN, header, memory) is None


def test_a_value_that_becomes_nan_while_it_is_encoded_is_refused() -> None:
    with pytest.raises(UpdateRefusedError, match="became NaN while"):
        encode(np.array([1.0, np.nan, 1e9]), 1.0, 1.0, 20, Rounding.of(0, 0, "p"))


def test_an_update_with_nan_leaves_the_model_as_it_is() -> None:
    memory, header = in_memory(MODEL)
    before, update = memory.copy(), trained(MODEL)
    update["b"][-1] = np.nan
    with pytest.raises(UpdateRefusedError, match="tensor 'b' holds NaN"):
        encode_tensors(PLAN, tensors_in(memory, header), update, 5, 2, "p", place_of_words(PLAN, header, memory))
    np.testing.assert_array_equal(memory, before)
