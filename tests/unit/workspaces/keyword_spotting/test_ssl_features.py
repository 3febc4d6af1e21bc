import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model
from transformers import WhisperConfig as OtherConfig

from openfl_audio.config import load_settings
from openfl_audio.errors import PretrainedWeightsError, SettingsError
from openfl_audio.node.adapter import FrameworkAdapterPlugin
from workspaces.keyword_spotting import data
from workspaces.keyword_spotting.data import EncoderClips, EncoderData, open_output_store
from workspaces.keyword_spotting.model import CONFIGS
from workspaces.keyword_spotting.ssl_features import UpstreamForKeywords, create_upstream
from workspaces.keyword_spotting.tasks import TrainingSettings, train_round, validate_clips
from workspaces.keyword_spotting.workload import KeywordSpotting, KeywordSpottingSettings

LABELS = ("low", "high")
HEAD = {f"head.{name}" for name in ("layer_weights", "projector.weight", "projector.bias", "classifier.weight")}
HEAD |= {"head.classifier.bias"}
TINY = {
    "conv_dim": [8, 12, 16], "conv_kernel": [32, 9, 4], "conv_stride": [16, 5, 4], "feat_extract_norm": "layer",
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2,
    "num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16, "num_feat_extract_layers": 3,
    "layerdrop": 0.5, "mask_time_prob": 0.5,
}  # fmt: skip


class Tones:
    """One second each, low and high in turn."""

    def __init__(self, num_clips: int) -> None:
        self.labels = np.arange(num_clips) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is drawn anew."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = int(self.labels[index])
        noise = np.random.default_rng(index).normal(size=16_000)
        tone = np.sin(2 * np.pi * (2_000 if label else 300) * np.arange(16_000) / 16_000)
        return (0.1 * (noise + 2 * tone)).astype(np.float32), label


class Shard:
    def get_dataset(self, split: str) -> Tones:
        return Tones(24 if split == "train" else 10)


@pytest.fixture(autouse=True)
def one_thread():
    """For models so small, threads cost more than they save, and much more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def save(folder: Path, kind: str = "hubert", normalize: bool = False, **changes) -> str:
    make = {"hubert": (HubertModel, HubertConfig), "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config)}[kind]
    torch.manual_seed(7)
    make[0](make[1](**TINY | changes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return str(folder)


def waveforms(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([Tones(count)[i][0] for i in range(count)]))


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("stable", [False, True])
def test_the_head_sees_the_input_of_the_first_layer_and_the_outputs_of_all(tmp_path, kind, stable):
    """The head is s3prl's featurizer, a softmax over all states, even at first, and SUPERB's two linear layers."""
    folder = save(tmp_path / kind, kind, do_stable_layer_norm=stable)
    model = create_upstream(folder, labels=LABELS).eval()
    reference = {"hubert": HubertModel, "wav2vec2": Wav2Vec2Model}[kind].from_pretrained(folder).eval()
    inputs = []
    reference.encoder.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        last = reference(waveforms(3)).last_hidden_state
        outputs = model.encode(waveforms(3))
        assert outputs.shape == (3, 3, 16) == (3, *model.output_shape)
        torch.testing.assert_close(outputs[:, 0], inputs[0].mean(1), rtol=0, atol=1e-6)
        torch.testing.assert_close(outputs[:, -1], last.mean(1), rtol=0, atol=1e-6)
        head = model.head
        even = head.classifier(head.projector(outputs.mean(1)))
        torch.testing.assert_close(model(waveforms(3)), even, rtol=0, atol=1e-6)
        head.layer_weights[:] = torch.log(torch.tensor([1.0, 2.0, 5.0]))
        mixed = (outputs * torch.tensor([1.0, 2.0, 5.0])[:, None]).sum(1) / 8
        torch.testing.assert_close(model(waveforms(3)), head.classifier(head.projector(mixed)), rtol=0, atol=1e-6)


def test_a_model_that_wants_it_gets_clips_of_mean_0_and_variance_1(tmp_path):
    folder = save(tmp_path / "hubert", normalize=True, feat_extract_norm="layer")
    model = create_upstream(folder, labels=LABELS).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    values = extractor(waveforms(1).numpy()[0], sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = HubertModel.from_pretrained(folder).eval()(values).last_hidden_state.mean(1)
        torch.testing.assert_close(model.encode(waveforms(1))[:, -1], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model(waveforms(1)), model(3 * waveforms(1)), rtol=0, atol=1e-4)


def test_only_the_head_travels_of_a_frozen_upstream_and_all_but_the_convolutions_of_a_trained_one(tmp_path, config):
    folder = save(tmp_path / "hubert")
    for frozen in (create_upstream(folder, labels=LABELS), create_upstream(config=config, labels=LABELS)):
        assert set(FrameworkAdapterPlugin.get_tensor_dict(frozen.train())) == HEAD
        assert not frozen.encoder.training
    trained = create_upstream(folder, labels=LABELS, frozen=False).train()
    names = set(FrameworkAdapterPlugin.get_tensor_dict(trained))
    every = {name for name, _ in trained.named_parameters()}
    assert every - names == {name for name in every if name.startswith("encoder.feature_extractor.")}
    random = create_upstream(config=config, labels=LABELS, frozen=False).train()
    assert set(FrameworkAdapterPlugin.get_tensor_dict(random)) == every


def test_log_mel_is_one_layer_without_weights():
    model = create_upstream("log_mel", labels=LABELS)
    inputs = model.make_inputs(list(waveforms(2).numpy()))
    assert inputs.shape == (2, *model.input_shape) == (2, 80, 100)
    torch.testing.assert_close(model.encode(inputs), inputs.mean(-1)[:, None])
    assert {name for name, _ in model.named_parameters()} == HEAD


def test_a_random_start_depends_on_the_seed_alone(config):
    first, again, other = (create_upstream(config=config, labels=LABELS, seed=seed) for seed in (0, 0, 1))
    assert first.encoder_key() == again.encoder_key() != other.encoder_key()
    assert torch.equal(first.head.projector.weight, again.head.projector.weight)
    assert not torch.equal(first.head.projector.weight, other.head.projector.weight)


def test_each_clip_is_encoded_once_and_other_weights_or_ways_have_a_store_of_their_own(tmp_path, config, monkeypatch):
    sizes = []
    encode = data.encode
    monkeypatch.setattr(data, "encode", lambda m, clips, d: sizes.append(len(clips)) or encode(m, clips, d))
    folder, normal = save(tmp_path / "hubert"), save(tmp_path / "normal", normalize=True)
    models = [create_upstream(name, labels=LABELS) for name in (folder, normal, "log_mel")]
    models.append(create_upstream(config=config, labels=LABELS))
    for model in models:
        before = sum(sizes)
        for _ in range(2):
            clips = EncoderClips(Tones(12))
            clips.prepare(model, "cpu")
        assert sum(sizes) - before == 12
        kept, _ = clips.batch([5, 2])
        with torch.no_grad():
            expected = model.encode(model.make_inputs([Tones(12)[i][0] for i in (5, 2)]))
        # float16 has 11 bits, so a value is off by up to 2^-11 of itself.
        torch.testing.assert_close(kept, expected, rtol=2**-10, atol=1e-6)
    assert len({open_output_store(model).folder.name for model in models}) == 4


@pytest.mark.training
@pytest.mark.parametrize("frozen", [True, False])
def test_an_upstream_learns_in_the_rounds_of_an_envoy(config, frozen):
    data = pickle.loads(pickle.dumps(EncoderData()))  # as it comes out of an experiment's archive
    data.shard_descriptor = Shard()
    model = create_upstream(config=config, labels=LABELS, frozen=frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = validate_clips(model, data.get_valid_loader(), "cpu")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    settings = TrainingSettings(rounds=2, local_epochs=10)
    for number in range(2):
        train_round(model, data.get_train_loader(), optimizer, "cpu", number, settings)
    end = validate_clips(model, data.get_valid_loader(), "cpu")
    assert end["loss"] < start["loss"] / 2
    assert end["accuracy"] == 1.0
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert (changed == HEAD) == frozen
    assert changed >= HEAD


def test_a_varied_clip_is_shifted_by_up_to_a_tenth_of_a_second(config):
    for model in (create_upstream(config=config, labels=LABELS), create_upstream("log_mel", labels=LABELS)):
        ramp = torch.arange(float(model.input_shape[-1])).expand(400, *model.input_shape).clone()
        varied = model.vary(ramp, torch.Generator().manual_seed(0))
        length = model.input_shape[-1]
        shifts = (varied.reshape(400, -1, length)[:, 0, length // 2] - length // 2).abs()
        assert 0.09 < shifts.max() / length <= 0.1
        assert torch.equal(varied.sort(-1).values, ramp)


def test_a_saved_model_comes_back_as_it_was(tmp_path):
    for name in (save(tmp_path / "hubert", normalize=True), "log_mel"):
        model = create_upstream(name, labels=LABELS, seed=3).eval()
        model.save_pretrained(tmp_path / "saved")
        again = UpstreamForKeywords.from_pretrained(tmp_path / "saved").eval()
        inputs = model.make_inputs(list(waveforms(2).numpy()))
        assert torch.equal(model(inputs), again(inputs))
        assert {n for n, p in again.named_parameters() if p.requires_grad} == HEAD
        assert again.config.id2label == dict(enumerate(LABELS))


def test_wrong_sources_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PretrainedWeightsError, match="no weights for 'nobody/nothing'"):
        create_upstream("nobody/nothing", labels=LABELS)
    OtherConfig().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="is a model of type 'whisper': an upstream should be hubert or wav2vec2"):
        create_upstream(str(tmp_path), labels=LABELS)


def test_settings_name_one_source(tmp_path, monkeypatch):
    def load(**changes) -> KeywordSpottingSettings:
        return load_settings(CONFIGS / "upstream.yaml", KeywordSpottingSettings, changes)

    assert KeywordSpotting().start_arguments(load())["best"] == ("accuracy", "max")
    with pytest.raises(SettingsError, match="model needs either upstream or config"):
        load(**{"model.config": "hubert.json"})
    with pytest.raises(SettingsError, match=r"model\.pretrained does not go with the architecture upstream"):
        load(**{"model.pretrained": "facebook/hubert-base-ls960"})
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(**{"model.upstream": "model"}).model.upstream == str(tmp_path / "model")
