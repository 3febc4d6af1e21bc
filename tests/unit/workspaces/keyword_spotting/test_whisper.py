import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from openfl_audio.errors import PretrainedWeightsError, SettingsError
from openfl_audio.node.adapter import FrameworkAdapterPlugin
from workspaces.keyword_spotting.whisper import (
    WhisperForKeywords,
    WhisperKeywordsConfig,
    compute_log_mel,
    create_log_mel,
    create_whisper,
)

pytestmark = pytest.mark.training

REPOSITORY = Path(__file__).parents[4]
LABELS = ("yes", "no", "_silence_")
TINY = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
    "decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 1, "vocab_size": 4, "pad_token_id": 0,
    "dropout": 0.3, "init_std": 0.5,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY | {"max_source_positions": 50}))
    return path


@pytest.fixture
def whisper(tmp_path):
    """A whole Whisper with random weights for 30 s, and its folder."""
    torch.manual_seed(0)
    whisper = WhisperModel(WhisperConfig(**TINY)).eval()
    whisper.save_pretrained(tmp_path / "whisper")
    return whisper, str(tmp_path / "whisper")


def head_by_hand(model, outputs):
    mix, _, _, classify = model.head
    mixed = torch.einsum("cf,bfd->bcd", mix.weight[:, :, 0], outputs) + mix.bias[:, None]
    return mixed.clamp(min=0).flatten(1) @ classify.weight.T + classify.bias


def test_the_head_on_whisper_tiny_has_781964_parameters():
    with torch.device("meta"):
        model = WhisperForKeywords(WhisperKeywordsConfig(num_labels=12))
    assert (model.config.d_model, model.config.max_source_positions) == (384, 1500)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 781_964


def test_only_the_head_travels_unless_all_is_trained(config):
    frozen = create_whisper(config=config, labels=LABELS)
    assert set(FrameworkAdapterPlugin.get_tensor_dict(frozen)) == {
        "head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias",
    }  # fmt: skip
    assert not list(frozen.encoder.buffers())
    whole = create_whisper(config=config, labels=LABELS, frozen=False)
    # Positions are no weights: Whisper has fixed ones.
    assert whole.state_dict().keys() - FrameworkAdapterPlugin.get_tensor_dict(whole).keys() == {
        "encoder.embed_positions.weight"
    }


def test_a_frozen_encoder_stays_as_it_is_when_the_model_trains(config):
    model = create_whisper(config=config, labels=LABELS).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(module.training for module in model.encoder.modules())
    assert model.head.training
    inputs = torch.randn(4, 8, 100)
    torch.testing.assert_close(model(inputs), model(inputs), rtol=0, atol=0)  # no dropout

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(inputs).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}

    whole = create_whisper(config=config, labels=LABELS, frozen=False).train()
    assert all(module.training for module in whole.modules())


def test_the_exact_form_is_whispers_encoder_and_the_head(whisper):
    original, folder = whisper
    model = create_whisper(folder, labels=LABELS).eval()
    waveforms = np.random.default_rng(0).normal(scale=0.1, size=(2, 16_000)).astype(np.float32)
    # Whisper's own way: thirty seconds, filled up with silence.
    extractor = WhisperFeatureExtractor(feature_size=8)
    inputs = extractor(list(waveforms), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        outputs = original.encoder(inputs).last_hidden_state
        logits = model(compute_log_mel(model.config, waveforms))
        expected = head_by_hand(model, outputs)
    assert model.form == "exact"
    assert outputs.shape == (2, 1500, 16)
    torch.testing.assert_close(logits, expected)
    assert logits.std() > 0.01


def test_the_short_form_has_the_first_50_positions_and_one_second(whisper):
    original, folder = whisper
    model = create_whisper(folder, labels=LABELS, form="short").eval()
    assert model.form == "short"
    positions = model.encoder.embed_positions.weight
    assert torch.equal(positions, original.encoder.embed_positions.weight[:50])
    weights = original.encoder.state_dict()
    for name, tensor in model.encoder.state_dict().items():
        assert name == "embed_positions.weight" or torch.equal(tensor, weights[name]), name

    features = compute_log_mel(model.config, [np.ones(16_000, np.float32)])
    assert features.shape == (1, 8, 100)
    assert model.encode(features).shape == (1, 50, 16)
    assert model.head[0].in_channels == 50


def test_weights_come_from_a_speech_recognizer_in_half_precision_too(tmp_path):
    """The hub has WhisperForConditionalGeneration, whose encoder has another name, and the large ones in float16."""
    recognizer = WhisperForConditionalGeneration(WhisperConfig(**TINY)).half()
    recognizer.save_pretrained(tmp_path)
    model = create_whisper(str(tmp_path), labels=LABELS)
    for name, tensor in recognizer.model.encoder.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["exact", "short"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_saved_model_comes_back_as_it_was(whisper, tmp_path, form, frozen):
    model = create_whisper(whisper[1], labels=LABELS, form=form, frozen=frozen).eval()
    model.save_pretrained(tmp_path / "saved")
    inputs = compute_log_mel(model.config, [np.linspace(-1, 1, 16_000, dtype=np.float32)])
    for again in (
        WhisperForKeywords.from_pretrained(tmp_path / "saved"),
        create_whisper(str(tmp_path / "saved"), labels=LABELS, form=form, frozen=frozen, seed=5),
    ):
        assert (again.form, again.frozen) == (form, frozen)
        assert [again.config.id2label[i] for i in range(3)] == list(LABELS)
        trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert torch.equal(again.eval()(inputs), model(inputs))
        assert again.encoder_key() == model.encoder_key()


def test_a_saved_model_may_be_thawed(config, tmp_path):
    create_whisper(config=config, labels=LABELS).save_pretrained(tmp_path / "saved")
    model = create_whisper(str(tmp_path / "saved"), labels=LABELS, frozen=False)
    assert model.train().encoder.training
    assert model.encoder.layers[0].fc1.weight.requires_grad


def test_a_saved_model_does_not_take_other_labels_or_another_form(whisper, tmp_path):
    saved = str(tmp_path / "saved")
    create_whisper(whisper[1], labels=LABELS).save_pretrained(saved)
    with pytest.raises(ValueError, match=r"has a head for \['yes', 'no', '_silence_'\], not for \['no', 'yes'\]"):
        create_whisper(saved, labels=("no", "yes"))
    with pytest.raises(ValueError, match="has a head for 1500 frames, which is not short"):
        create_whisper(saved, labels=LABELS, form="short")


def test_a_random_start_depends_on_the_seed_only(config):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = create_whisper(config=config, labels=LABELS, seed=1)
    assert torch.rand(1) == expected  # the random state is left alone
    same, other = (create_whisper(config=config, labels=LABELS, seed=seed) for seed in (1, 2))
    for name in ("encoder.conv1.weight", "head.0.weight", "head.3.weight"):
        assert torch.equal(first.state_dict()[name], same.state_dict()[name])
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    # PyTorch's own start of a Linear: uniform up to 1 / sqrt(128 * 16).
    assert first.head[3].weight.abs().max().item() == pytest.approx(2048**-0.5, rel=0.01)


def test_the_encoders_key_changes_with_its_weights_only(config):
    model = create_whisper(config=config, labels=LABELS)
    key = model.encoder_key()
    with torch.no_grad():
        model.head[0].weight.add_(1)
    assert model.encoder_key() == key == create_whisper(config=config, labels=LABELS).encoder_key()
    with torch.no_grad():
        model.encoder.layers[0].fc1.bias[0] += 1e-3
    changed = model.encoder_key()
    assert changed != key
    config.write_text(config.read_text().replace('"encoder_attention_heads": 2', '"encoder_attention_heads": 4'))
    assert create_whisper(config=config, labels=LABELS).encoder_key() not in (key, changed)


def test_the_encoders_weights_are_read_once_for_the_key(config, monkeypatch):
    model = create_whisper(config=config, labels=LABELS)
    key = model.encoder_key()
    monkeypatch.delattr("workspaces.keyword_spotting.model._hash_encoder")
    assert model.encoder_key() == key


@pytest.mark.parametrize("frames", [50, 100, 1500])
def test_log_mel_is_that_of_transformers_whatever_the_length(frames):
    noise = np.random.default_rng(0).normal(scale=0.1, size=40_000).astype(np.float32)
    waveforms = [noise[:16_000], noise[:7], np.zeros(16_000, np.float32), noise]
    config = WhisperConfig(max_source_positions=frames)
    expected = WhisperFeatureExtractor(chunk_length=frames // 50)(
        waveforms, sampling_rate=16_000, return_tensors="pt"
    ).input_features
    torch.testing.assert_close(compute_log_mel(config, waveforms), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(compute_log_mel(config, waveforms[:1]), expected[:1], rtol=0, atol=1e-6)


def test_a_compiled_model_has_the_same_names_and_values(config):
    model, compiled = (create_whisper(config=config, labels=LABELS, compile=each).eval() for each in (False, True))
    assert compiled.encoder._compiled_call_impl is not None
    assert compiled.head._compiled_call_impl is not None
    assert compiled.state_dict().keys() == model.state_dict().keys()
    inputs = torch.randn(2, 8, 100)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():  # compiling takes half a minute
        torch.testing.assert_close(compiled(inputs), model(inputs))


COMPILED = """
import sys
import openfl_audio.simulation.simulation  # OpenFL loads pip, which decides how setuptools loads for the compiler
import torch
from workspaces.keyword_spotting.whisper import create_whisper

arguments = {"config": sys.argv[1], "labels": ("yes", "no"), "frozen": False}
plain, compiled = (create_whisper(**arguments, compile=each).eval() for each in (False, True))
inputs = torch.randn(2, 8, 100)
with torch.no_grad():
    torch.testing.assert_close(compiled(inputs), plain(inputs), rtol=1e-4, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
"""


@pytest.mark.slow
def test_a_model_compiles_where_openfl_is_loaded_and_computes_the_same(config, tmp_path):
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-c", COMPILED, str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_a_compiler_or_pythons_headers_compiling_says_what_to_install(config, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-g++")
    with pytest.raises(SettingsError, match=r"there is no 'no-such-g\+\+': install g\+\+"):
        create_whisper(config=config, labels=LABELS, compile=True)
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(SettingsError, match=f"there is no {tmp_path}/Python.h: install them"):
        create_whisper(config=config, labels=LABELS, compile=True)


def test_a_hub_name_without_network_and_cache_says_how_to_get_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match="hf download openai/whisper-nothing"):
        create_whisper("openai/whisper-nothing", labels=LABELS)


@pytest.mark.parametrize("arguments", [{}, {"pretrained": "a", "config": "b"}])
def test_one_of_pretrained_and_config_is_needed(arguments):
    with pytest.raises(ValueError, match="give either pretrained .* or config"):
        create_whisper(**arguments, labels=LABELS)


def test_an_unknown_form_or_half_a_second_raises(config, tmp_path):
    with pytest.raises(ValueError, match="form 'long' is unknown; choose exact or short"):
        create_whisper(config=config, labels=LABELS, form="long")
    with pytest.raises(ValueError, match="max_source_positions is 25, but should be whole seconds of 50 frames"):
        create_log_mel(80, 25)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        create_whisper(config=tmp_path / "nowhere.json", labels=LABELS)
