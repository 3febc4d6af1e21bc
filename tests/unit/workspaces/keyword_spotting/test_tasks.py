import json
import pickle

import numpy as np
import pytest
import torch

from openfl_audio.node.progress import current
from workspaces.keyword_spotting import data, whisper
from workspaces.keyword_spotting.data import EncoderClips, EncoderData, open_output_store
from workspaces.keyword_spotting.tasks import TrainingSettings, draw_batches, train_round, validate_clips
from workspaces.keyword_spotting.whisper import compute_log_mel, create_whisper, vary

pytestmark = pytest.mark.training

LABELS = ("low", "high", "_silence_")
TINY = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
    "dropout": 0.1, "init_std": 0.2, "max_source_positions": 50,
}  # fmt: skip


class Tones:
    """Low and high tones in turn, then a noise recording that every access cuts another second out of."""

    def __init__(self, num_clips: int) -> None:
        self.labels = np.append(np.arange(num_clips - 1) % 2, 2) if num_clips else np.array([], dtype=int)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.reads = epoch, 0

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = int(self.labels[index])
        if label == 2:
            self.reads += 1
            noise = np.random.default_rng((self.epoch, self.reads)).normal(size=16_000)
        else:
            noise = np.random.default_rng((1, index)).normal(size=16_000)
            noise += 2 * np.sin(2 * np.pi * (2_000 if label else 300) * np.arange(16_000) / 16_000)
        return (0.1 * noise).astype(np.float32), label


class Shard:
    def __init__(self, train: int, validation: int) -> None:
        self.sizes = {"train": train, "validation": validation}

    def get_dataset(self, split: str) -> Tones:
        return Tones(self.sizes[split])


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
    return tmp_path / "cache"


@pytest.fixture
def create(tmp_path):
    """A tiny model; keyword arguments that are no arguments of create_whisper go into its configuration."""

    def create(frozen: bool = True, seed: int = 0, **values):
        path = tmp_path / "tiny.json"
        path.write_text(json.dumps(TINY | values))
        return create_whisper(config=path, labels=LABELS, frozen=frozen, seed=seed)

    return create


@pytest.fixture
def encoded(monkeypatch):
    """List how many clips each call of the encoder got."""
    sizes = []
    encode = data.encode
    monkeypatch.setattr(
        data, "encode", lambda model, clips, device: sizes.append(len(clips)) or encode(model, clips, device)
    )
    return sizes


def train(model, clips, rounds=1, **values):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    settings = TrainingSettings(rounds=rounds, **values)
    return [train_round(model, clips, optimizer, "cpu", number, settings) for number in range(rounds)]


def direct_outputs(model, clips):
    waveforms = [clips._waveform(item) for item in range(len(clips))]
    with torch.no_grad():
        return model.eval().encode(compute_log_mel(model.config, waveforms))


def test_outputs_from_the_cache_are_the_encoders_to_half_precision(create):
    model, clips = create(), EncoderClips(Tones(12), repeat_rare=True)
    clips.prepare(model, "cpu")
    order = np.random.default_rng(0).permutation(len(clips))
    inputs, labels = clips.batch(order)
    expected = direct_outputs(model, clips)[torch.from_numpy(order)]
    # float16 has 11 bits, so a value is off by up to 2^-11 of itself.
    torch.testing.assert_close(inputs, expected, rtol=2**-10, atol=1e-6)
    assert expected.std(dim=0).min() > 1e-3  # the clips differ
    assert labels.tolist() == clips.labels[order].tolist()


def test_a_second_epoch_and_a_second_process_encode_nothing(create, encoded):
    model = create()
    train(model, EncoderClips(Tones(20)), rounds=2)
    assert sum(encoded) == 20
    validate_clips(model, EncoderClips(Tones(20)), "cpu")  # the data was made anew
    train(pickle.loads(pickle.dumps(model)), EncoderClips(Tones(20)))
    assert sum(encoded) == 20


def test_what_the_cache_lacks_is_encoded_and_nothing_else(create, encoded):
    model = create()
    EncoderClips(Tones(9)).prepare(model, "cpu")
    assert sum(encoded) == 9
    EncoderClips(Tones(12)).prepare(model, "cpu")  # of which 8 are the same tones, and silence the same cut
    assert sum(encoded) == 12


def test_other_weights_or_windows_or_bands_have_entries_of_their_own(create, encoded):
    names = set()
    for values in ({}, {"seed": 1}, {"max_source_positions": 100}, {"num_mel_bins": 16}):
        model = create(**values)
        before = sum(encoded)
        EncoderClips(Tones(4)).prepare(model, "cpu")
        assert sum(encoded) - before == 4
        names.add(open_output_store(model).folder.name)
    assert len(names) == 4
    model = create()
    clips = EncoderClips(Tones(4))
    clips.prepare(model, "cpu")
    with torch.no_grad():
        model.encoder.layers[0].fc1.weight.mul_(3)
    before = clips.batch([0])[0]
    clips.prepare(model, "cpu")
    assert not torch.equal(clips.batch([0])[0], before)


def test_clips_beyond_the_bound_are_encoded_at_each_use_with_the_same_result(create, encoded, monkeypatch, caplog):
    def outcome(limit_gb):
        monkeypatch.setenv("OPENFL_AUDIO_CACHE_GB", limit_gb)
        model, clips = create(), EncoderClips(Tones(16))
        train(model, clips)
        return validate_clips(model, clips, "cpu")

    limited = outcome("0.00001")  # six clips of 1,632 bytes
    assert "the outputs of 6 clips are kept, those of further clips are computed each time" in caplog.text
    assert sum(encoded) > 16 + 10  # at first, in training and in validation
    assert outcome("1") == pytest.approx(limited, rel=1e-3)


def test_silence_is_as_many_cuts_as_other_labels_have_clips_and_the_same_in_every_epoch(create):
    clips = EncoderClips(Tones(21), repeat_rare=True)
    assert np.bincount(clips.labels).tolist() == [10, 10, 10]
    assert clips.num_clips == 21
    silence = np.flatnonzero(clips.labels == 2)
    waveforms = [clips._waveform(item) for item in silence]
    assert len({waveform.tobytes() for waveform in waveforms}) == 10
    for item, waveform in reversed(list(zip(silence, waveforms, strict=True))):
        np.testing.assert_array_equal(clips._waveform(item), waveform)


def test_every_label_is_drawn_as_often():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    settings = TrainingSettings(rounds=1, local_epochs=3)
    batches = list(draw_batches(labels, 1_000, settings, torch.Generator().manual_seed(0)))
    assert len(batches) == 3 * 125
    assert {len(batch) for batch in batches} == {8}
    drawn = np.bincount(labels[np.concatenate(batches)])
    # 3,000 draws at 1/3: a standard deviation of 26.
    assert np.abs(drawn - 1_000).max() < 4 * 26


def test_a_batch_that_is_not_full_is_left_out(create):
    settings = TrainingSettings(rounds=1)
    assert len(list(draw_batches(np.zeros(23, int), 23, settings, torch.Generator()))) == 2


@pytest.mark.parametrize("number", [1, 2, 7, 8, 9])
def test_a_shard_below_one_batch_trains_on_what_it_has(create, number):
    data = pickle.loads(pickle.dumps(EncoderData()))  # as it comes out of an experiment's archive
    data.shard_descriptor = Shard(number, 3)
    assert (data.get_train_data_size(), data.get_valid_data_size()) == (number, 3)
    [batch] = draw_batches(np.zeros(number, int), number, TrainingSettings(rounds=1), torch.Generator())
    assert len(batch) == min(number, 8)
    model = create()
    before = [parameter.clone() for parameter in model.head.parameters()]
    assert np.isfinite(train(model, data.get_train_loader())[0]["loss"])
    assert any(not torch.equal(old, new) for old, new in zip(before, model.head.parameters(), strict=True))


def test_without_clips_there_is_nothing_to_train_or_validate_with(create):
    data = EncoderData()
    data.shard_descriptor = Shard(0, 0)
    assert (data.get_train_data_size(), data.get_valid_data_size()) == (0, 0)
    with pytest.raises(ValueError, match="there are no clips to train with"):
        train(create(), data.get_train_loader())
    with pytest.raises(ValueError, match="there are no clips to validate with"):
        validate_clips(create(), data.get_valid_loader(), "cpu")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_round_is_a_function_of_seed_and_round_number(create, frozen):
    def outcome(seed, round_number):
        model, clips = create(frozen=frozen), EncoderClips(Tones(16), repeat_rare=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.rand(seed + 1)  # whatever happened before must not matter
        metrics = train_round(model, clips, optimizer, "cpu", round_number, TrainingSettings(rounds=9, seed=seed))
        assert (current().step, current().total, current().clips) == (2, 2, 16)
        return metrics, torch.cat([parameter.flatten() for parameter in model.parameters()])

    (metrics, weights), (again, same) = outcome(0, 3), outcome(0, 3)
    assert metrics == again
    assert torch.equal(weights, same)
    assert not torch.equal(weights, outcome(0, 4)[1])
    assert not torch.equal(weights, outcome(1, 3)[1])


def test_a_round_leaves_the_random_state_alone(create):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    train(create(frozen=False), EncoderClips(Tones(8)))
    assert torch.rand(1) == expected


def test_training_a_frozen_model_changes_the_head_only_and_learns(create):
    model, clips = create(), EncoderClips(Tones(33), repeat_rare=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = validate_clips(model, clips, "cpu")
    metrics = train(model, clips, rounds=4, local_epochs=10)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    end = validate_clips(model, clips, "cpu")
    assert end["loss"] < start["loss"] / 2
    assert end["accuracy"] > 0.9
    assert metrics[-1]["accuracy"] > metrics[0]["accuracy"]


def test_training_a_whole_model_changes_its_encoder_and_learns(create, encoded):
    model, clips = create(frozen=False), EncoderClips(Tones(33), repeat_rare=True)
    before = model.encoder.conv1.weight.clone()
    train(model, clips, rounds=4, local_epochs=10)
    assert not torch.equal(model.encoder.conv1.weight, before)
    assert validate_clips(model, clips, "cpu")["accuracy"] > 0.9
    assert not encoded


def test_the_learning_rate_stays_or_follows_the_schedule_of_all_rounds(create):
    rates = {}
    for constant in (True, False):
        model, clips = create(), EncoderClips(Tones(16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        settings = TrainingSettings(rounds=4, warmup=0.0, constant_rate=constant)
        rates[constant] = []
        for number in range(4):
            train_round(model, clips, optimizer, "cpu", number, settings)
            rates[constant].append(optimizer.param_groups[0]["lr"])
    assert rates[True] == [0.5] * 4
    assert rates[False] == pytest.approx([0.375, 0.25, 0.125, 0.0])


def test_label_smoothing_moves_the_loss_towards_that_of_all_labels_alike(create):
    none, half, all_of_it = (
        train(create(), EncoderClips(Tones(8)), label_smoothing=smoothing)[0]["loss"] for smoothing in (0.0, 0.5, 1.0)
    )
    assert half == pytest.approx((none + all_of_it) / 2)  # of the one step, before it was made
    assert abs(none - all_of_it) > 1e-4


@pytest.mark.parametrize("frozen", [True, False])
def test_validation_is_the_mean_over_all_clips(create, frozen):
    """Not over batches: the last one may be smaller."""
    model, clips = create(frozen=frozen), EncoderClips(Tones(13))
    with torch.no_grad():
        logits = model.head(direct_outputs(model, clips))
    expected = {
        "loss": torch.nn.functional.cross_entropy(logits, torch.from_numpy(clips.labels)).item(),
        "accuracy": (logits.argmax(-1).numpy() == clips.labels).mean(),
    }
    for batch_size in (1, 4, 64):
        assert validate_clips(model, clips, "cpu", batch_size) == pytest.approx(expected, rel=1e-3)
    assert 0 < expected["accuracy"] < 1


def test_features_too_large_for_memory_are_computed_for_each_batch(create, monkeypatch):
    kept, computed = EncoderClips(Tones(6), repeat_rare=True), EncoderClips(Tones(6), repeat_rare=True)
    model = create(frozen=False)
    kept.prepare(model, "cpu")
    monkeypatch.setattr(data, "MAX_INPUTS_BYTES", 1)
    computed.prepare(model, "cpu")
    items = [3, 0, 5]
    torch.testing.assert_close(computed.batch(items)[0], kept.batch(items)[0])
    monkeypatch.setattr(kept, "_waveform", None)
    assert kept.batch(items)[0].shape == (3, 8, 100)


def centres(features, axis):
    """Return where the energy lies on an axis, (clips,)."""
    energy = features - features.amin(dim=(1, 2), keepdim=True)
    profile = energy.sum(dim=3 - axis)
    return (profile * torch.arange(profile.shape[1])).sum(1) / profile.sum(1)


@pytest.mark.parametrize("frames", [100, 300])
def test_a_varied_clip_is_shifted_stretched_and_louder_within_limits(frames):
    click, hum = torch.zeros(2, 400, 40, frames).unbind()
    click[:, :, 48:52] = 1.0
    hum[:, 18:22] = 1.0
    varied = vary(click, torch.Generator().manual_seed(0))
    assert torch.equal(varied, vary(click, torch.Generator().manual_seed(0)))
    shifts = centres(varied, axis=2) - 49.5
    assert 9 < shifts.abs().max() < 10 * 1.22 + 0.5  # a tenth of a second, stretched by up to 22 %
    assert shifts.mean().abs() < 4 * 5.9 / 20  # 400 of a standard deviation of 5.9
    lengths = (varied - varied.amin(dim=(1, 2), keepdim=True)).sum(dim=(1, 2)) / 40
    assert 3.0 < lengths.min() < 3.5 < 4.5 < lengths.max() < 5.0
    levels = varied.amin(dim=(1, 2))
    assert -0.2 <= levels.min() < -0.19 < 0.19 < levels.max() <= 0.2

    bands = centres(vary(hum, torch.Generator().manual_seed(0)), axis=1) + 0.5
    assert 20 / 1.23 < bands.min() < 17.5 < 22.5 < bands.max() < 20 * 1.23


def test_a_clip_that_is_not_varied_comes_out_as_it_was(monkeypatch):
    for name in ("MAX_STRETCH", "MAX_SHIFT_FRAMES", "MAX_LEVEL"):
        monkeypatch.setattr(whisper, name, 0)
    features = torch.randn(3, 8, 300)
    torch.testing.assert_close(vary(features, torch.Generator()), features, rtol=0, atol=1e-4)
