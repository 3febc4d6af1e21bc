import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from openfl_audio.errors import PretrainedWeightsError
from workspaces.keyword_spotting_wav2vec2.model import CONFIGS, create_feature_extractor, create_wav2vec2

LABELS = ("yes", "no", "_silence_")

SMALL = "wav2vec2_small.json"


def test_a_random_start_depends_on_the_seed_only():
    first = create_wav2vec2(config=SMALL, labels=LABELS, seed=1)
    torch.rand(3)  # whatever happened before must not matter
    same, other = (create_wav2vec2(config=SMALL, labels=LABELS, seed=seed) for seed in (1, 2))
    weight = "wav2vec2.encoder.layers.0.attention.q_proj.weight"
    torch.testing.assert_close(first.state_dict()[weight], same.state_dict()[weight], rtol=0, atol=0)
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_making_a_model_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    create_wav2vec2(config=SMALL, labels=LABELS)
    assert torch.rand(1) == expected


def test_a_saved_model_comes_back_from_its_folder_with_a_frozen_encoder_and_classifies(tmp_path):
    model = create_wav2vec2(config=SMALL, labels=LABELS).eval()
    model.save_pretrained(tmp_path)
    create_feature_extractor().save_pretrained(tmp_path)
    waveform = np.random.default_rng(0).normal(size=16_000).astype(np.float32)

    again = create_wav2vec2(str(tmp_path), labels=LABELS).eval()
    frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith("wav2vec2.feature_extractor.") for name in frozen)
    values = create_feature_extractor()(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = model(values).logits.softmax(-1)[0]
        torch.testing.assert_close(again(values).logits.softmax(-1)[0], expected)

    heard = pipeline("audio-classification", model=str(tmp_path))(waveform, top_k=3)
    assert {item["label"]: item["score"] for item in heard} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True))
    )


def test_a_hub_name_without_network_and_cache_says_how_to_get_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match="hf download nobody/nothing-at-all"):
        create_wav2vec2("nobody/nothing-at-all", labels=LABELS)


@pytest.mark.parametrize("arguments", [{}, {"pretrained": "a", "config": "b"}])
def test_one_of_pretrained_and_config_is_needed(arguments):
    with pytest.raises(ValueError, match="give either pretrained .* or config"):
        create_wav2vec2(**arguments, labels=LABELS)


def test_a_config_that_is_no_file_raises_and_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        create_wav2vec2(config=tmp_path / "nowhere.json", labels=LABELS)


def test_the_small_configuration_has_one_kernel_and_stride_per_convolution():
    config = json.loads((CONFIGS / SMALL).read_text())
    assert (
        len(config["conv_dim"])
        == len(config["conv_stride"])
        == len(config["conv_kernel"])
        == config["num_feat_extract_layers"]
    )
