import json

import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)
from transformers import BertConfig as OtherConfig

from openfl_audio.errors import PretrainedWeightsError, SettingsError
from openfl_audio.node.adapter import FrameworkAdapterPlugin
from openfl_audio.training.adapters import Lora
from tests.unit.workspaces.speech_recognition.speech import TINY, tiny_recognizer
from workspaces.speech_recognition.letters import encode
from workspaces.speech_recognition.model import create_recognizer, save_recognizer

HEAD = {"lm_head.weight", "lm_head.bias"}


@pytest.fixture
def upstream(tmp_path):
    torch.manual_seed(7)
    HubertModel(HubertConfig(**TINY)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "hubert")
    return str(tmp_path / "hubert")


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("stable", [True, False])
def test_a_padded_batch_gives_each_clip_what_it_has_alone(tmp_path, norm, normalize, stable):
    model = tiny_recognizer(tmp_path, feat_extract_norm=norm, do_stable_layer_norm=stable).eval()
    model.config.normalize = normalize
    lengths = torch.tensor([16_000, 9_000, 400])
    waveforms = 0.1 * torch.randn(3, 16_000)
    with torch.no_grad():
        # Padding of any kind, also loud.
        together = model(waveforms, lengths)
        frames = model.count_frames(lengths).tolist()
        assert frames == [49, 27, 1]
        for clip, n, samples in zip(range(3), frames, lengths.tolist(), strict=True):
            alone = model(waveforms[clip : clip + 1, :samples], lengths[clip : clip + 1])
            torch.testing.assert_close(together[clip, :n], alone[0], rtol=0, atol=1e-5)


def test_a_saved_recognizer_is_one_of_transformers(upstream, tmp_path):
    model = create_recognizer(upstream, seed=2).eval()
    save_recognizer(model, tmp_path / "saved")
    again = HubertForCTC.from_pretrained(tmp_path / "saved").eval()
    processor = Wav2Vec2Processor.from_pretrained(tmp_path / "saved")
    waveform = 0.1 * torch.randn(1, 8_000)
    values = processor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        torch.testing.assert_close(again(values).logits, model(waveform, torch.tensor([8_000])), rtol=0, atol=1e-5)
    assert processor.decode(encode("it's all")) == "it's al"  # repetitions are one
    assert processor.tokenizer("it's al").input_ids == encode("it's al")


def test_only_the_linear_layer_travels_of_a_frozen_one_and_all_but_the_convolutions_of_a_trained_one(
    upstream, tmp_path
):
    frozen = create_recognizer(upstream, frozen=True).train()
    assert set(FrameworkAdapterPlugin.get_tensor_dict(frozen)) == HEAD
    assert not frozen.hubert.training
    trained = create_recognizer(upstream).train()
    every = {name for name, _ in trained.named_parameters()}
    convolutions = {name for name in every if name.startswith("hubert.feature_extractor.")}
    assert set(FrameworkAdapterPlugin.get_tensor_dict(trained)) == every - convolutions
    random = tiny_recognizer(tmp_path).train()
    assert set(FrameworkAdapterPlugin.get_tensor_dict(random)) == every


def test_pretrained_weights_are_those_of_the_folder_and_the_rest_depends_on_the_seed(upstream):
    first, other = create_recognizer(upstream, seed=0), create_recognizer(upstream, seed=1)
    expected = HubertModel.from_pretrained(upstream).state_dict()
    for model in (first, other):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.hubert.state_dict().items())
    assert first.config.normalize
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_wrong_sources_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PretrainedWeightsError, match="no weights for 'nobody/nothing'"):
        create_recognizer("nobody/nothing")
    OtherConfig().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="is a model of type 'bert': it should be one of hubert, wav2vec2, "):
        create_recognizer(str(tmp_path))
    with pytest.raises(ValueError, match="give either upstream"):
        create_recognizer()


KINDS = {
    "wav2vec2": {**TINY, "model_type": "wav2vec2", "feat_extract_norm": "group"},
    "wav2vec2-bert": {
        "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "feature_projection_input_dim": 80, "conv_depthwise_kernel_size": 3,
        "left_max_position_embeddings": 4, "right_max_position_embeddings": 2, "apply_spec_augment": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_models_of_ctc_hear_a_clip_the_same_among_others_and_are_saved_as_transformers_has_them(kind, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(KINDS[kind]))
    model = create_recognizer(config=tmp_path / "tiny.json", letters=" äb", seed=1).eval()
    waveforms, lengths = 0.1 * torch.randn(2, 9_000), torch.tensor([9_000, 5_001])
    with torch.no_grad():
        together, alone = model(waveforms, lengths), model(waveforms[1:, :5_001], lengths[1:])
    frames = model.count_frames(lengths).tolist()
    assert together.shape == (2, frames[0], 4)
    torch.testing.assert_close(together[1, : frames[1]], alone[0], rtol=0, atol=1e-5)
    model.save_recognizer(tmp_path / "saved")
    again = AutoModelForCTC.from_pretrained(tmp_path / "saved").eval()
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path / "saved")(
        waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        logits = again(**inputs).logits
    torch.testing.assert_close(logits[:, : frames[0]], together[:1], rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("b ä").input_ids == [3, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_and_the_layer_to_letters_are_transmitted_of_an_adapted_one(kind, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(KINDS[kind]))
    model = create_recognizer(config=tmp_path / "tiny.json", adapter=Lora(r=2)).train()
    names = FrameworkAdapterPlugin.get_tensor_dict(model)
    assert {name for name in names if ".lora_" not in name} == HEAD
    assert len(names) == len(HEAD) + 4
