"""The benchmark of real sizes: its configurations are the published ones, and each measurement is of what it says."""

import json

import pytest
import torch
from transformers import AutoConfig, Wav2Vec2ForCTC, WhisperForConditionalGeneration

from benchmarks import real_sizes
from benchmarks.arguments import load, save
from tests.unit.workspaces.shipped import TINY_WAV2VEC2
from tests.unit.workspaces.speech_recognition.test_whisper import TINY as TINY_WHISPER

# Of the published weights: with the vocabulary of 51,865 tokens, and of 32 letters.
PUBLISHED = {"whisper-tiny": 37_760_640, "whisper-small": 241_734_912, "wav2vec2-base": 94_396_320}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_has_as_many_parameters_as_the_published_weights(name):
    config = AutoConfig.for_model(**real_sizes.MODELS[name])
    with torch.device("meta"):
        model = (WhisperForConditionalGeneration if "whisper" in name else Wav2Vec2ForCTC)(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    if "whisper" in name:
        assert config.vocab_size == real_sizes.WHISPER_WORDS


def test_models_are_measured_whole_by_adapters_and_beside_plain_transformers(tmp_path, monkeypatch, capsys):
    wav2vec2 = {"model_type": "wav2vec2", **TINY_WAV2VEC2, "feat_extract_norm": "layer"}
    monkeypatch.setattr(real_sizes, "MODELS", {"whisper-tiny": TINY_WHISPER, "wav2vec2-base": wav2vec2})
    monkeypatch.setattr(real_sizes, "WHISPER_WORDS", 500)
    # In this process, as another would not see the small configurations.
    monkeypatch.setattr(real_sizes, "in_new_process", lambda run: run())
    monkeypatch.setattr(save, "__defaults__", (tmp_path,))
    small = ["--seconds", "1", "--steps", "1", "--clips", "2", "--device", "cpu"]
    models = ["--models", "whisper-tiny", "wav2vec2-base"]
    assert real_sizes.main([*models, *small, "--save", "real-sizes"]) == 0
    values = load(tmp_path / "real-sizes.json").values
    assert values == json.loads(capsys.readouterr().out)
    for name, found in values["models"].items():
        tensors = real_sizes.create(name).state_dict(keep_vars=True)
        trained = {id(each): each for each in tensors.values() if each.requires_grad}.values()
        assert found["whole"]["transmitted_mb"] == round(sum(4 * each.numel() for each in trained) / 1e6, 2)
        assert found["adapter"]["transmitted_mb"] < found["whole"]["transmitted_mb"]
        assert all(found[kind]["batch"] == 2 for kind in real_sizes.KINDS)
        assert all(found[kind]["peak_memory_mb"] > 100 for kind in real_sizes.KINDS)
        assert found["times_plain"] == pytest.approx(found["whole"]["seconds"] / found["plain"]["seconds"], abs=0.01)


def test_the_plain_loop_goes_where_the_task_goes(monkeypatch):
    quiet = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    monkeypatch.setattr(real_sizes, "MODELS", {"wav2vec2-base": {"model_type": "wav2vec2", **TINY_WAV2VEC2, **quiet}})
    made = []

    def create_sgd(parameters, lr):
        made.append(torch.optim.SGD(parameters, lr))
        return made[-1]

    # The length of its step tells of the gradient, which Adam's does not.
    monkeypatch.setattr(torch.optim, "AdamW", create_sgd)
    measurement = real_sizes.Measurement("wav2vec2-base", "plain", 2, 1, 1.0, "cpu")
    start = real_sizes.create("wav2vec2-base")
    for steps_of in (measurement._task, measurement._plain):
        steps_of(real_sizes.create("wav2vec2-base"), 2)(1)
    before = torch.cat([each.detach().flatten() for each in start.parameters()])
    ours, plain = (torch.cat([p.detach().flatten() for p in each.param_groups[0]["params"]]) - before for each in made)
    assert ours.norm() > 0
    # Ours is a mean over letters and theirs a sum, so the lengths differ.
    assert torch.nn.functional.cosine_similarity(ours.double(), plain.double(), dim=0) > 0.999
