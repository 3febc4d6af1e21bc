import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio
from transformers import AutoFeatureExtractor, HubertConfig, HubertModel

from openfl_audio.errors import PretrainedWeightsError, SettingsError
from tests.unit.workspaces.hubert.tones import TINY, batch_of, tiny_hubert
from workspaces.hubert.model import (
    CONFIGS,
    check_frames,
    count_frames,
    create_hubert,
    load_model,
    read_config,
    save_model,
)
from workspaces.hubert_distillation.model import CONFIGS as STUDENTS

LENGTHS = [16_000, 11_111, 6_400]
EXTRACTORS = pytest.mark.parametrize("norm", ["group", "layer"])


@pytest.fixture(scope="module")
def base():
    return create_hubert("hubert_base.json", clusters=100).eval()


@EXTRACTORS
@pytest.mark.parametrize("stable", [False, True])
def test_in_a_padded_batch_every_layer_gives_a_clip_what_it_gives_it_alone(tmp_path, norm, stable):
    model = tiny_hubert(tmp_path, feat_extract_norm=norm, do_stable_layer_norm=stable).eval()
    batch = batch_of(LENGTHS)
    with torch.no_grad():
        outputs, frames = model.extract_features(batch.waveforms, batch.lengths)
        assert frames.tolist() == [49, 34, 19]
        for row, (samples, n) in enumerate(zip(LENGTHS, frames.tolist(), strict=True)):
            alone, _ = model.extract_features(batch.waveforms[row : row + 1, :samples])
            for together, by_itself in zip(outputs, alone, strict=True):
                assert by_itself.shape == (1, n, 32)
                # Sums of 16 to 64 float32 products in another order.
                torch.testing.assert_close(together[row, :n], by_itself[0], rtol=0, atol=1e-5)


def test_torchaudio_lets_padding_into_the_first_normalisation():
    """Why there is a forward of our own."""
    published = torchaudio.models.wav2vec2_model(**_torchaudio(TINY | {"feat_extract_norm": "group"})).eval()
    batch = batch_of(LENGTHS)
    with torch.no_grad():
        together = published.extract_features(batch.waveforms, batch.lengths)[0][0][2, :19]
        alone = published.extract_features(batch.waveforms[2:, :6_400])[0][0][0]
    assert (together - alone).abs().max() > 0.01


@EXTRACTORS
def test_every_layer_agrees_with_torchaudio_and_with_transformers(tmp_path, norm):
    """A clip alone, as the others' padding leaks."""
    model = tiny_hubert(tmp_path, feat_extract_norm=norm).eval()
    save_model(model, tmp_path / "model")
    theirs = HubertModel.from_pretrained(tmp_path / "model").eval()
    published = torchaudio.models.wav2vec2.utils.import_huggingface_model(theirs).eval()
    waveform = 0.1 * torch.randn(2, 9_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, _ = model.extract_features(waveform)
        states = theirs(waveform, output_hidden_states=True)
        for layer, output in enumerate(published.extract_features(waveform)[0]):
            torch.testing.assert_close(ours[layer], output, rtol=0, atol=1e-4)
            torch.testing.assert_close(ours[layer], states.hidden_states[layer + 1], rtol=0, atol=1e-4)
        torch.testing.assert_close(model(waveform), states.last_hidden_state, rtol=0, atol=1e-4)
        torch.testing.assert_close(model(waveform), published(waveform)[0], rtol=0, atol=1e-4)


def test_the_stable_variant_ends_as_transformers_does(tmp_path):
    model = tiny_hubert(tmp_path, do_stable_layer_norm=True, feat_extract_norm="layer").eval()
    save_model(model, tmp_path / "model")
    theirs = HubertModel.from_pretrained(tmp_path / "model").eval()
    waveform = 0.1 * torch.randn(1, 9_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = theirs(waveform, output_hidden_states=True)
        torch.testing.assert_close(model.extract_features(waveform)[0][0], states.hidden_states[1], rtol=0, atol=1e-4)
        torch.testing.assert_close(model(waveform), states.last_hidden_state, rtol=0, atol=1e-4)


@pytest.mark.training
def test_base_has_the_94_6_million_parameters_of_torchaudio(base):
    assert sum(parameter.numel() for parameter in base.parameters()) == 94_594_176
    published = torchaudio.models.hubert_pretrain_base(num_classes=100)
    assert sum(parameter.numel() for parameter in published.parameters()) == 94_594_176
    assert sorted(p.shape for p in base.parameters()) == sorted(p.shape for p in published.parameters())


@pytest.mark.training
def test_base_loads_in_transformers_with_equal_outputs_at_every_layer(base, tmp_path):
    save_model(base, tmp_path)
    theirs = HubertModel.from_pretrained(tmp_path).eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    waveform = 0.1 * np.random.default_rng(0).normal(size=8_000).astype(np.float32)
    values = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = theirs(values, output_hidden_states=True).hidden_states
        ours, _ = base.extract_features(torch.from_numpy(waveform)[None])
    assert len(ours) == 12
    for layer in range(12):
        torch.testing.assert_close(ours[layer], states[layer + 1], rtol=0, atol=1e-4)


def test_logits_are_those_of_torchaudio(tmp_path):
    """It puts the right cluster first, and removes it from the others."""
    model = tiny_hubert(tmp_path)
    published = torchaudio.models.wav2vec2.components.LogitGenerator(32, 8, 16, False, False)
    published.load_state_dict({k: v for k, v in model.state_dict().items() if k in published.state_dict()})
    outputs, labels = torch.randn(1, 30, 32), torch.randint(8, (1, 30))
    everywhere = torch.ones(1, 30, dtype=torch.bool)
    with torch.no_grad():
        expected = published(outputs, labels, everywhere, ~everywhere)[0]
        logits = model.logits(outputs[0])
    torch.testing.assert_close(logits.gather(1, labels[0][:, None])[:, 0], expected[:, 0])
    torch.testing.assert_close(
        F.cross_entropy(logits, labels[0]), F.cross_entropy(expected, torch.zeros(30, dtype=torch.int64))
    )


def test_a_masked_frame_is_not_seen(tmp_path):
    model = tiny_hubert(tmp_path).eval()
    features = torch.randn(1, 30, 32)
    mask = torch.zeros(1, 30, dtype=torch.bool)
    mask[0, 10:20] = True
    changed = torch.where(mask[..., None], torch.randn(1, 30, 32), features)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(features, mask=mask)[-1], model.encode(changed, mask=mask)[-1])
        assert not torch.allclose(model.encode(features)[-1], model.encode(changed)[-1])


@EXTRACTORS
def test_checkpointing_changes_no_gradient(tmp_path, norm):
    batch = batch_of(LENGTHS)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_hubert(tmp_path, feat_extract_norm=norm, hidden_dropout=0.1, layerdrop=0.3).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(1)
        model(batch.waveforms, batch.lengths).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert sum(gradient is not None for gradient in gradients[0]) > 20
    torch.testing.assert_close(gradients[0], gradients[1])


def test_only_the_gradient_of_the_convolutions_is_scaled(tmp_path):
    batch = batch_of([8_000])
    norms = []
    for scale in (1.0, 0.1):
        model = tiny_hubert(tmp_path)
        model.feature_grad_mult = scale
        model(batch.waveforms).square().sum().backward()
        parts = (model.feature_extractor, model.encoder)
        norms.append([sum(p.grad.norm() for p in part.parameters()).item() for part in parts])
    assert norms[1][0] == pytest.approx(0.1 * norms[0][0], rel=1e-4)
    assert norms[1][1] == pytest.approx(norms[0][1], rel=1e-6)


def test_a_random_start_depends_on_the_seed_only(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = tiny_hubert(tmp_path, seed=1)
    assert torch.rand(1) == expected  # and leaves the generator alone
    same, other = tiny_hubert(tmp_path, seed=1), tiny_hubert(tmp_path, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.label_embeddings, other.label_embeddings)


def test_a_saved_model_comes_back_with_its_head(tmp_path):
    model = tiny_hubert(tmp_path)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.has_head
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_a_model_of_others_loads_without_head_and_hears_clips_as_it_was_taught(tmp_path):
    torch.manual_seed(0)
    theirs = HubertModel(HubertConfig(**TINY)).eval()
    theirs.save_pretrained(tmp_path)
    preprocessor = {"do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"sampling_rate": 16_000}))
    model = load_model(tmp_path)
    assert not model.has_head
    waveform = 3 + 7 * np.random.default_rng(0).normal(size=(1, 8_000)).astype(np.float32)
    values = AutoFeatureExtractor.from_pretrained(tmp_path)(waveform[0], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(values.input_values).last_hidden_state
        torch.testing.assert_close(model(torch.from_numpy(waveform)), expected, rtol=0, atol=1e-4)


def test_weights_that_do_not_fit_their_config_are_named(tmp_path):
    save_model(tiny_hubert(tmp_path), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(SettingsError, match=r"do not fit its config\.json: without .*'encoder\.layers\.2\."):
        load_model(tmp_path / "model")


def test_a_hub_name_without_network_and_cache_says_how_to_get_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match="hf download nobody/nothing-at-all"):
        load_model("nobody/nothing-at-all")


@pytest.mark.parametrize(
    "config",
    [path for folder in (CONFIGS, STUDENTS) for path in sorted(folder.glob("*.json"))],
    ids=lambda path: path.stem,
)
def test_all_configurations_make_the_frames_that_targets_are_made_for(config):
    values = read_config(config)
    check_frames(values)
    num_samples = torch.arange(400, 20_000, 37)
    frames = num_samples
    for kernel, stride in zip(values.conv_kernel, values.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
    assert torch.equal(frames, count_frames(num_samples))


def test_other_frames_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="give frames of 384 samples every 320: they should have 400 every 320"):
        tiny_hubert(tmp_path, conv_kernel=[16, 9, 4])


def _torchaudio(values):
    return {
        "extractor_mode": f"{values['feat_extract_norm']}_norm",
        "extractor_conv_layer_config": list(
            zip(values["conv_dim"], values["conv_kernel"], values["conv_stride"], strict=True)
        ),
        "extractor_conv_bias": True,
        "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 64,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": False,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
