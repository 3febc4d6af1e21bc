import pickle
from functools import partial

import numpy as np
import pytest
import torch
from openfl.interface.aggregation_functions import Median
from openfl.interface.interactive_api.experiment import TaskInterface
from transformers import WhisperConfig, WhisperForConditionalGeneration

from openfl_audio.errors import DefinitionError, WeightsError
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.notebook.experiment import Definition, define
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.privacy import RecordLevel, SpeakerLevel
from openfl_audio.protocol.tensors import write_tensors
from openfl_audio.training.private_round import trains_privately
from tests.unit import toy


def make_definition(**others) -> Definition:
    return define("toy", **toy.arguments(**others))


def test_the_first_model_is_the_one_that_is_built_without_what_is_frozen():
    definition = make_definition()
    assert definition.tensors.keys() == {"line.weight", "line.bias", "seen"}
    np.testing.assert_array_equal(definition.tensors["line.weight"], [[0.5, 0.25]])
    assert definition.plan.untrained == ["seen"]
    assert definition.opt_treatment == "RESET"


def test_a_global_optimizer_travels_and_is_untrained():
    definition = make_definition(optimizer=toy.MOMENTUM, opt_treatment="CONTINUE_GLOBAL")
    states = {"optimizer.momentum_buffer.line.weight", "optimizer.momentum_buffer.line.bias"}
    assert definition.tensors.keys() == {"line.weight", "line.bias", "seen"} | states
    assert set(definition.plan.untrained) == {"seen"} | states


def test_local_tensors_are_no_part_of_the_first_model():
    definition = make_definition(
        optimizer=toy.MOMENTUM, opt_treatment="CONTINUE_GLOBAL", local_tensors=["*.bias", "seen"]
    )
    assert definition.tensors.keys() == {"line.weight", "optimizer.momentum_buffer.line.weight"}


def test_the_global_model_is_validated_before_it_is_trained_however_tasks_are_registered():
    tasks = make_definition().plan.tasks
    assert [(task.name, task.function_name) for task in tasks] == [
        ("aggregated_model_validate", "measure"),
        ("train", "fit"),
    ]


def test_arguments_become_the_plan():
    participation = Participation(count=2, seed=7)
    plan = make_definition(
        rounds=9,
        best=("loss", "min"),
        also_best={"hits": "max"},
        patience=4,
        halve_rate_after=2,
        keep=3,
        envoys=iter(["b", "a"]),
        participation=participation,
    ).plan
    assert (plan.name, plan.rounds, plan.keep, plan.precision) == ("toy", 9, 3, "float32")
    assert plan.best.model_dump() == {
        "metric": "loss", "direction": "min", "others": {"hits": "max"}, "patience": 4, "halve_rate_after": 2,
    }  # fmt: skip
    assert (plan.envoys, plan.participation) == (["b", "a"], participation)


FAULTS = {
    "an unknown treatment": ({"opt_treatment": "KEEP"}, r"opt_treatment 'KEEP' is not supported: use one of \('RESET'"),
    "an optimizer in float16": (
        {"opt_treatment": "CONTINUE_GLOBAL", "precision": "float16"},
        "an optimizer's state does not fit into float16: use precision='float32'",
    ),
    "no task": ({"train": None, "validate": None}, "no task is registered: decorate a function"),
    "a pattern that matches nothing": (
        {"local_tensors": ["line.*", "haed.*"]},
        r"local_tensors: 'haed.\*' matches no trained tensor",
    ),
    "a pattern of a frozen tensor": ({"local_tensors": ["scale"]}, "'scale' matches no trained tensor"),
}

RECORDS = RecordLevel(noise_multiplier=1.0, clip=1.0, delta=1e-5, probability=0.1, steps=3)


class Normalised(toy.Line):
    """A line after a layer that normalises over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)


@trains_privately
def fit_privately(model, points, device, optimizer, round_number):
    """Stand for a task that has private steps."""
    return {}


def test_privacy_is_part_of_the_plan():
    plan = make_definition(privacy=RECORDS, train=fit_privately).plan
    again = type(plan).model_validate_json(plan.model_dump_json())
    assert (again.privacy, again.privacy.clips_per_unit) == (RECORDS, 1)
    speakers = SpeakerLevel(**RECORDS.model_dump(exclude={"unit"}), clips_per_speaker=7)
    assert make_definition(privacy=speakers, train=fit_privately).plan.privacy.clips_per_unit == 7
    assert make_definition().plan.privacy is None


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({}, r"the training task '.*\.fit' has no private steps, .* of each record .*: use train_privately in it"),
        ({"train": None}, "privacy is about training, and no task trains"),
        (
            {"train": fit_privately, "model": Normalised},
            r"Normalised normalises over the clips of a batch \(BatchNorm1d norm\).*take the variant with GroupNorm",
        ),
    ],
)
def test_privacy_that_tasks_or_model_cannot_give_is_refused(others, sentence):
    with pytest.raises(DefinitionError, match=sentence):
        make_definition(privacy=RECORDS, **others)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"delta": 1}, "delta"), ({"noise_multiplier": 0}, "noise_multiplier"), ({"probability": 1.5}, "probability")],
)
def test_numbers_that_no_privacy_can_have_are_refused_by_name(changes, field):
    with pytest.raises(DefinitionError, match=f"RecordLevel: {field}"):
        RecordLevel(**RECORDS.model_dump() | changes)


@pytest.mark.parametrize("fault", FAULTS)
def test_arguments_that_do_not_fit_are_refused_with_a_sentence(fault):
    others, sentence = FAULTS[fault]
    with pytest.raises(ValueError, match=sentence):
        make_definition(**others)


def test_an_aggregation_function_of_openfl_is_refused():
    tasks = TaskInterface()

    @tasks.register_fl_task(model="model", data_loader="points", device="device", optimizer="optimizer")
    @tasks.set_aggregation_function(Median())
    def fit(model, points, device, optimizer):
        return {}

    with pytest.raises(ValueError, match="set_aggregation_function is not supported: give aggregation=Aggregation"):
        define("toy", **toy.arguments() | {"task_keeper": tasks})


def test_a_model_in_place_of_a_recipe_is_refused():
    with pytest.raises(TypeError, match=r"model is a Line: give a recipe, e.g. functools.partial"):
        ModelInterface(toy.Line(), toy.PLAIN)
    with pytest.raises(TypeError, match="local_tensors is 'head.*': give a list of patterns"):
        ModelInterface(toy.Line, toy.PLAIN, local_tensors="head.*")


def test_an_interface_travels_without_the_model_that_it_has_built():
    interface = ModelInterface(toy.Line, toy.PLAIN)
    with torch.no_grad():
        interface.provide_model().line.bias.fill_(7)
    assert interface.provide_model().line.bias == 7
    assert pickle.loads(pickle.dumps(interface)).provide_model().line.bias == -0.5


def line_that_starts_at(bias: float) -> torch.nn.Module:
    model = toy.Line()
    torch.nn.init.constant_(model.line.bias, bias)
    return model


def test_a_model_with_given_weights_is_a_new_one_and_takes_no_optimizers_state():
    interface = ModelInterface(partial(line_that_starts_at, 5.0), toy.MOMENTUM, local_tensors=["line.bias"])
    tensors = interface.initial_tensors(with_optimizer=True)
    built = interface.provide_model()
    given = {name: tensor + 1 for name, tensor in tensors.items()}
    model = interface.model_with(given)
    np.testing.assert_array_equal(model.line.weight.detach().numpy(), [[1.5, 1.25]])
    assert (model.line.bias, model.scale, model.seen) == (5, 1, 1), "what stays on the nodes is as at the start"
    np.testing.assert_array_equal(built.line.weight.detach().numpy(), [[0.5, 0.25]])


def test_an_experiment_begins_with_the_weights_of_a_file_but_not_with_what_is_frozen_in_it(tmp_path):
    interface = ModelInterface(toy.Line, toy.MOMENTUM)
    weights = {name: tensor + 3 for name, tensor in interface.initial_tensors(with_optimizer=False).items()}
    write_tensors(tmp_path / "model.safetensors", weights | {"scale": np.float32([9])}, {})
    interface.start_from(tmp_path)
    tensors = interface.initial_tensors(with_optimizer=True)
    assert tensors.keys() == {*weights, "optimizer.momentum_buffer.line.weight", "optimizer.momentum_buffer.line.bias"}
    for name, tensor in weights.items():
        np.testing.assert_array_equal(tensors[name], tensor)
    assert interface.model_with(tensors).scale == 1


SEEN = np.array(4)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (
            {"seen": SEEN, "line.weight": np.ones((1, 2), np.float32)},
            "does not fit: 'line.bias' should be float32.*and is not there",
        ),
        (
            {"seen": SEEN, "line.weight": np.ones((2, 1), np.float32)},
            r"'line.weight' should be float32\(1, 2\), and is float32\(2, 1\)",
        ),
        (None, "the weights to start from cannot be read: .*model.safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensors_name(tmp_path, weights, sentence):
    path = tmp_path / "model.safetensors"
    if weights is not None:
        write_tensors(path, weights, {})
    interface = ModelInterface(toy.Line, toy.PLAIN)
    interface.start_from(path)
    with pytest.raises(WeightsError, match=sentence):
        interface.initial_tensors(with_optimizer=False)


def whisper() -> WhisperForConditionalGeneration:
    """A tiny one, whose output layer is its embedding."""
    small = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size"), 8)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(**small, **sizes, **tokens, max_source_positions=4, max_target_positions=4)
    return WhisperForConditionalGeneration(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "2KB"}], ids=["whole", "in shards"])
def test_what_save_pretrained_wrote_is_started_from(tmp_path, dtype, shards):
    saved = whisper().to(dtype)
    saved.save_pretrained(tmp_path, **shards)
    assert (tmp_path / "model.safetensors").exists() == (not shards)
    interface = ModelInterface(whisper, toy.PLAIN)
    interface.start_from(tmp_path)
    tensors = interface.initial_tensors(with_optimizer=False)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    made = interface.model_with(tensors).state_dict()
    # Whisper's positions are frozen: they stay as the recipe builds them.
    values = {name: value for name, value in saved.state_dict().items() if "embed_positions" not in name}
    assert "proj_out.weight" in values
    for name, value in values.items():
        torch.testing.assert_close(made[name], value.float(), rtol=0, atol=0)


def test_a_shard_that_is_missing_is_named(tmp_path):
    whisper().save_pretrained(tmp_path, max_shard_size="2KB")
    next(iter(tmp_path.glob("model-*.safetensors"))).unlink()
    interface = ModelInterface(whisper, toy.PLAIN)
    interface.start_from(tmp_path)
    with pytest.raises(WeightsError, match=r"cannot be read: .*model-0000.*\.safetensors"):
        interface.initial_tensors(with_optimizer=False)


def test_a_folder_without_weights_is_refused_with_what_it_has(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    interface = ModelInterface(toy.Line, toy.PLAIN)
    interface.start_from(tmp_path)
    with pytest.raises(WeightsError, match=r"neither model.safetensors nor .*, but \['pytorch_model.bin'\]"):
        interface.initial_tensors(with_optimizer=False)


def tied_pair() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    return model


def test_a_tied_weight_stays_on_its_node_under_all_of_its_names_or_under_none():
    assert ModelInterface(tied_pair, toy.PLAIN).initial_tensors(with_optimizer=False).keys() == {"0.weight"}
    local = ModelInterface(tied_pair, toy.PLAIN, local_tensors=["1.*", "0.*"])
    assert not local.initial_tensors(with_optimizer=False)
    for pattern, other in (("0.*", "1.weight"), ("1.*", "0.weight")):
        with pytest.raises(ValueError, match=rf"one memory with \['{other}'\], which no pattern matches"):
            ModelInterface(tied_pair, toy.PLAIN, local_tensors=[pattern]).initial_tensors(with_optimizer=False)
