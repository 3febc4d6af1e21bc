"""Adapters in models of several kinds: what is trained and transmitted, how they start, and how they are exported."""

import json
import pickle
from functools import partial

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from openfl_audio.errors import PretrainedWeightsError, SettingsError, WeightsError
from openfl_audio.node.adapter import transmitted
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.node.task_runner import TaskRunner
from openfl_audio.training.adapters import (
    AdapterSettings,
    Lora,
    add_adapter,
    merge_adapter,
    save_adapter,
)
from tests.unit.workspaces.shipped import TINY_SPECTROGRAM_TRANSFORMER, TINY_WAV2VEC2

TINY = {
    "wav2vec2": TINY_WAV2VEC2,
    "audio-spectrogram-transformer": TINY_SPECTROGRAM_TRANSFORMER,
    "wav2vec2-bert": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "feature_projection_input_dim": 160, "apply_spec_augment": False, "layerdrop": 0.0,
        "conv_depthwise_kernel_size": 3, "left_max_position_embeddings": 4, "right_max_position_embeddings": 2,
    },
}  # fmt: skip
INPUTS = {
    "wav2vec2": torch.randn(2, 4_000),
    "audio-spectrogram-transformer": torch.randn(2, 1024, 128),
    "wav2vec2-bert": torch.randn(2, 20, 160),
}
LORA = Lora(r=2, alpha=4)


def classifier(kind: str, adapter: Lora | None = None, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(7)
    model = AutoModelForAudioClassification.from_config(AutoConfig.for_model(kind, **TINY[kind], num_labels=3))
    return add_adapter(model, adapter, seed)


def whisper(adapter: Lora | None = None, seed: int = 0) -> WhisperForConditionalGeneration:
    torch.manual_seed(7)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3, max_source_positions=50, num_mel_bins=8, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return add_adapter(WhisperForConditionalGeneration(config), adapter, seed)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model after a step: B is not zero any more."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("kind", TINY)
def test_adapters_and_the_head_alone_are_transmitted_and_the_model_starts_as_it_was(kind):
    plain, adapted = classifier(kind).eval(), classifier(kind, LORA).eval()
    names = transmitted(adapted)
    assert {name.rpartition(".lora_")[2][:1] or name for name in names if ".lora_" in name} == {"A", "B"}
    heads = {name for name in names if ".lora_" not in name}
    assert heads == {name for name, _ in plain.named_parameters() if name.startswith(("projector", "classifier"))}
    assert len(names) - len(heads) == 4  # query and value of one layer
    with torch.no_grad():
        torch.testing.assert_close(adapted(INPUTS[kind]).logits, plain(INPUTS[kind]).logits)
        assert not torch.allclose(shaken(adapted)(INPUTS[kind]).logits, plain(INPUTS[kind]).logits)


def test_whisper_is_adapted_in_encoder_and_decoder_and_keeps_its_tied_words():
    model = whisper(LORA)
    names = transmitted(model)
    assert all(".lora_" in name for name in names)
    assert len(names) == 2 * 2 * 3  # factors; query and value; attention of the encoder, and two of the decoder
    assert model.peft_config["default"].task_type is None
    features = torch.randn(1, 8, 100)
    loss = model(input_features=features, labels=torch.tensor([[5, 6, 2]])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert model.generate(features, max_new_tokens=3).shape[0] == 1


def test_adapters_start_from_the_seed():
    first, again, other = (transmitted(classifier("wav2vec2", LORA, seed)) for seed in (1, 1, 2))
    name = next(name for name in first if ".lora_A." in name)
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    model = classifier("wav2vec2")
    state = torch.random.get_rng_state()
    add_adapter(model, LORA, 1)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers change


def test_a_frozen_a_is_not_transmitted_and_the_same_everywhere():
    model = classifier("wav2vec2", LORA.model_copy(update={"freeze_a": True}))
    names = transmitted(model)
    assert not any(".lora_A." in name for name in names)
    assert sum(".lora_B." in name for name in names) == 2
    own = {name: value for name, value in model.state_dict().items() if ".lora_A." in name}
    other = classifier("wav2vec2", LORA.model_copy(update={"freeze_a": True})).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in own.items())


@pytest.mark.parametrize("residual", [False, True])
def test_a_merged_model_computes_the_same_and_has_the_names_of_the_base(residual):
    model = shaken(classifier("wav2vec2", LORA.model_copy(update={"residual": residual})))
    for name, buffer in model.named_buffers():
        if name.endswith("lora_residual"):
            buffer += 0.1 * torch.randn(buffer.shape)
    merged = merge_adapter(model)
    assert merged.state_dict().keys() == classifier("wav2vec2").state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(merged(INPUTS["wav2vec2"]).logits, model(INPUTS["wav2vec2"]).logits)
    assert hasattr(model, "peft_config")


def test_a_residual_counts_as_much_as_a_product_of_factors():
    by_factors, by_residual = (classifier("wav2vec2", Lora(r=2, alpha=6, residual=True)).eval() for _ in range(2))
    with torch.no_grad():
        for name, factor in list(by_factors.named_parameters()):
            if ".lora_B." in name:
                layer = name.removesuffix(".lora_B.default.weight")
                factor += torch.randn(factor.shape)
                product = factor @ by_factors.get_parameter(f"{layer}.lora_A.default.weight")
                by_residual.get_buffer(f"{layer}.base_layer.parametrizations.weight.0.lora_residual").copy_(product)
        found, expected = (model(INPUTS["wav2vec2"]).logits for model in (by_residual, by_factors))
    torch.testing.assert_close(found, expected)


def test_peft_loads_the_adapter_upon_the_base(tmp_path):
    base, model = classifier("wav2vec2"), shaken(classifier("wav2vec2", LORA))
    save_adapter(model, tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["task_type"]) == (2, 4, None)
    assert described["modules_to_save"] == ["projector", "classifier"]
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(INPUTS["wav2vec2"]).logits, model(INPUTS["wav2vec2"]).logits)
    with pytest.raises(SettingsError, match="save the merged model"):
        save_adapter(classifier("wav2vec2", LORA.model_copy(update={"residual": True})), tmp_path / "other")


def test_peft_loads_the_adapter_of_whisper_upon_it(tmp_path):
    base, model = whisper(), shaken(whisper(LORA))
    save_adapter(model, tmp_path)
    features = torch.randn(1, 8, 100)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        found, expected = (
            each(input_features=features, labels=torch.tensor([[5, 6]])).logits for each in (loaded, model)
        )
    torch.testing.assert_close(found, expected)


def test_what_cannot_have_adapters_is_refused():
    with pytest.raises(SettingsError, match="has no linear layer called nowhere"):
        classifier("wav2vec2", Lora(targets=("nowhere",)))
    with pytest.raises(SettingsError, match="rank 17 are no smaller than '.*v_proj', which has 16 inputs and 16"):
        classifier("wav2vec2", Lora(r=17))
    wavlm = WavLMForSequenceClassification(WavLMConfig(**TINY["wav2vec2"]))
    with pytest.raises(SettingsError, match="type wavlm passes adapters by: train it whole"):
        add_adapter(wavlm, LORA, 0)


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def other_base(kind: str) -> torch.nn.Module:
    model = classifier(kind, LORA)
    with torch.no_grad():
        model.wav2vec2.encoder.layers[0].feed_forward.output_dense.bias[0] += 1e-6
    return model


def test_a_node_with_another_base_is_refused_and_both_are_named():
    interface = ModelInterface(partial(classifier, "wav2vec2", LORA), optimizer)
    interface.initial_tensors(with_optimizer=False)
    received = pickle.loads(pickle.dumps(interface))
    TaskRunner().set_model_provider(received)
    received = pickle.loads(pickle.dumps(interface))
    received.model = partial(other_base, "wav2vec2")
    with pytest.raises(PretrainedWeightsError, match="SHA-256 is [0-9a-f]{64}, and [0-9a-f]{64} where") as refused:
        TaskRunner().set_model_provider(received)
    assert interface.base_sha256 in str(refused.value)


def test_an_adapter_of_another_rank_is_no_start(tmp_path):
    save_adapter(shaken(classifier("wav2vec2", LORA)), tmp_path)
    interface = ModelInterface(partial(classifier, "wav2vec2", LORA), optimizer)
    interface.start_from(tmp_path)
    started = interface.initial_tensors(with_optimizer=False)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for name, tensor in started.items():
        np.testing.assert_array_equal(tensor, saved[f"base_model.model.{name.replace('.default.', '.')}"])
    larger = ModelInterface(partial(classifier, "wav2vec2", Lora(r=4)), optimizer)
    larger.start_from(tmp_path)
    with pytest.raises(WeightsError, match=r"should be float32\(4, 16\), and is float32\(2, 16\)"):
        larger.initial_tensors(with_optimizer=False)


def test_the_rule_that_fills_residuals_gives_adapters_one():
    values = {"rounds": 1, "batch_size": 1, "optimizer": {"learning_rate": 0.1}, "adapter": {"r": 4}}
    assert AdapterSettings(**values).adapter == Lora(r=4)
    with_rule = values | {"aggregation": {"rule": {"rule": "lora_residual"}}}
    assert AdapterSettings(**with_rule).adapter == Lora(r=4, residual=True)
    again = AdapterSettings(**AdapterSettings(**with_rule).model_dump(mode="json"))
    assert again.adapter == Lora(r=4, residual=True)
