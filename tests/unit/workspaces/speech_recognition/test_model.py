import pytest
import torch
from transformers import HubertConfig, HubertForCTC, HubertModel, Wav2Vec2FeatureExtractor, Wav2Vec2Processor
from transformers import WhisperConfig as OtherConfig

from openfl_audio.errors import PretrainedWeightsError, SettingsError
from openfl_audio.node.adapter import FrameworkAdapterPlugin
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
    with pytest.raises(SettingsError, match="is a model of type 'whisper': it should be hubert"):
        create_recognizer(str(tmp_path))
    with pytest.raises(ValueError, match="give either upstream"):
        create_recognizer()
