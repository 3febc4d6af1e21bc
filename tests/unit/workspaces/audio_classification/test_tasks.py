"""Training of any module on one label, several, or a number; metrics that merge; weights and batches by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from openfl_audio.errors import SettingsError
from openfl_audio.node.progress import current
from openfl_audio.node.task_runner import seed_generators
from tests.unit.workspaces.audio_classification.recordings import Tones, create_cnn
from workspaces.audio_classification.data import Augmentation, Clips, RecordingsData, change_speed, draw_epoch
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.tasks import (
    MEAN_OVER,
    TrainingSettings,
    accuracy_interval,
    class_weights,
    confusion,
    loss_of,
    macro_f1,
    predict_all,
    train_round,
    validate_clips,
)
from workspaces.audio_classification.workload import AudioClassification, read_settings

WORDS = Targets("label", ("low", "high"))
KINDS = {
    "label": (WORDS, ["low", "high"] * 8),
    "labels": (Targets("labels", ("low", "high")), [("low",), ("high",), ("low", "high"), ()] * 4),
    "number": (Targets("number"), [0.5, 1.5, 1.0, 0.75] * 4),
}


def clips_of(targets=WORDS, labels=("low", "high"), **options) -> Clips:
    return Clips(Tones(labels), targets, 0.1, **options)


def train(model, clips, rounds=1, rate=0.01, **settings) -> dict[str, float]:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for round_number in range(rounds):
        metrics = train_round(
            model, clips, optimizer, "cpu", round_number, TrainingSettings(rounds, batch_size=4, **settings)
        )
    return metrics


@pytest.mark.training
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_of_ones_own_learns_each_kind_of_target(kind):
    targets, labels = KINDS[kind]
    clips, model = clips_of(targets, labels), create_cnn(targets.num_outputs)
    before = validate_clips(model, clips, "cpu")["loss"]
    train(model, clips, rounds=40, rate=0.02, learning_rate=0.02, clip_norm=1.0)
    after = validate_clips(model, clips, "cpu")
    assert after["loss"] < 0.2 * before
    if kind != "number":
        assert macro_f1(after) > 0.95


def test_each_step_is_reported():
    train(create_cnn(2), clips_of(labels=("low", "high") * 5), local_epochs=2, accumulate=2)
    assert (current().step, current().total, current().clips) == (4, 4, 20)
    assert current().values["loss"] > 0


def test_metrics_of_sites_merge_to_those_of_all_clips():
    labels = ["low"] * 7 + ["high"] * 4
    model = create_cnn(2, seed=3)
    parts = [clips_of(labels=labels[:8]), clips_of(labels=labels[8:])]
    # A tone's phase is its position in the shard: the second part has to begin where the first ended.
    parts[1]._shard_dataset = type("Shifted", (Tones,), {"__getitem__": lambda s, i: Tones(labels)[i + 8]})(labels[8:])
    whole = clips_of(labels=labels)
    of_parts = [validate_clips(model, part, "cpu") for part in parts]
    expected = validate_clips(model, whole, "cpu")
    merged = {name: (8 * of_parts[0][name] + 3 * of_parts[1][name]) / 11 for name in expected.keys() - MEAN_OVER.keys()}
    assert merged == pytest.approx({name: expected[name] for name in merged}, abs=1e-6)
    logits, encoded = predict_all(model, whole, "cpu")
    np.testing.assert_allclose(confusion(merged, 2) * 11, confusion_matrix(encoded, logits.argmax(1)), atol=1e-6)
    assert macro_f1(merged) == pytest.approx(f1_score(encoded, logits.argmax(1), average="macro"), abs=1e-6)


def test_ranks_are_those_of_the_classes_that_a_site_has_and_no_means_over_sites():
    targets, model = Targets("label", ("low", "high", "gone")), create_cnn(3, seed=3)
    clips = clips_of(targets, ["low"] * 5 + ["high"] * 3)
    metrics = validate_clips(model, clips, "cpu")
    scores = predict_all(model, clips, "cpu")[0].softmax(1).numpy()
    by_hand = [roc_auc_score(clips.encoded == i, scores[:, i]) for i in (0, 1)]
    assert metrics["auroc"] == pytest.approx(np.mean(by_hand))
    assert 0 < metrics["mAP"] <= 1
    alone = validate_clips(model, clips_of(targets, ["low"] * 5), "cpu")
    assert np.isnan(alone["auroc"])
    assert alone["mAP"] == pytest.approx(1.0)
    assert AudioClassification().start_arguments(read_settings("small.yaml", targets))["mean_over"] == MEAN_OVER
    assert MEAN_OVER.keys() == {"auroc", "mAP", "accuracy_low", "accuracy_high"}


def test_the_interval_of_the_accuracy_draws_whole_speakers():
    correct = np.array([True] * 40 + [False] * 10)
    five = accuracy_interval(correct, [str(i // 10) for i in range(50)])
    assert (five["accuracy_low"], five["accuracy_high"]) == (0.4, 1.0)
    fifty = accuracy_interval(correct, [""] * 50)
    assert 0.65 < fifty["accuracy_low"] < 0.75 < 0.85 < fifty["accuracy_high"] < 0.95
    assert accuracy_interval(correct, ["ann"] * 50) == {}
    clips = clips_of(labels=["low"] * 4)
    clips.groups = ["a", "a", "b", "b"]
    metrics = validate_clips(create_cnn(2), clips, "cpu")
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]


def test_of_many_classes_no_pairs_are_told():
    many = Targets("label", ("low", "high", *map(str, range(24))))
    metrics = validate_clips(create_cnn(26), clips_of(many), "cpu")
    assert not any(name.startswith("confused") for name in metrics)
    assert confusion(metrics, 3).shape == (0, 0)


def test_accumulated_batches_are_one_step_on_all_their_clips():
    labels = ["low", "high", "high", "low", "low", "high"]
    weights = []
    for settings in ({"accumulate": 2}, {}):
        model = create_cnn(2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        batch_size = 3 if settings else 6
        train_round(model, clips_of(labels=labels), optimizer, "cpu", 0, TrainingSettings(1, 1, batch_size, **settings))
        weights.append(model[1].weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_clipping_bounds_what_a_step_changes():
    model, before = create_cnn(2), create_cnn(2)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    train_round(model, clips_of(), optimizer, "cpu", 0, TrainingSettings(1, batch_size=2, clip_norm=1e-3))
    change = sum((a - b).square().sum() for a, b in zip(model.parameters(), before.parameters(), strict=True)).sqrt()
    assert change.item() == pytest.approx(1e-3, rel=1e-3)


def test_mixed_precision_trains_too_and_is_not_the_same():
    models = [create_cnn(2) for _ in range(2)]
    for model, mixed in zip(models, (False, True), strict=True):
        train(model, clips_of(labels=["low", "high"] * 4), rounds=2, mixed_precision=mixed)
    difference = (models[0][1].weight - models[1][1].weight).abs().max().item()
    assert 0 < difference < 0.05


def test_weights_make_rare_classes_count_as_much_as_others():
    weights = class_weights(clips_of(Targets("label", ("low", "high", "gone")), ["low"] * 6 + ["high"] * 2))
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0, 1.0]))
    logits, labels = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    by_hand = np.log1p(np.exp(-2)) * 0.5 + 3 * np.log1p(np.exp(1))
    assert loss_of("label", logits, labels, torch.tensor([0.5, 3.0])).item() == pytest.approx(by_hand / 2)


def test_balanced_epochs_draw_classes_equally_often_and_others_each_clip_once():
    clips = clips_of(labels=["low"] * 90 + ["high"] * 10)
    drawn = np.concatenate(draw_epoch(clips, 16, True, (0,)))
    assert 30 < (clips.encoded[drawn] == 1).sum() < 70
    plain = draw_epoch(clips, 16, False, (0,))
    assert sorted(np.concatenate(plain)) == list(range(100))
    assert {len(batch) for batch in plain} == {14, 15}
    assert not np.array_equal(np.concatenate(plain), np.concatenate(draw_epoch(clips, 16, False, (1,))))


def test_clips_have_one_length_and_their_scores_do_not_depend_on_others():
    clips = Clips(Tones(["low", "high"], samples=500), WORDS, 0.1)
    inputs, labels = clips.batch([1, 0])
    assert inputs.shape == (2, 800)
    assert labels.tolist() == [1, 0]
    assert not inputs[:, 500:].any()
    long = Clips(Tones(["low"], samples=2_000), WORDS, 0.1)
    torch.testing.assert_close(long.batch([0])[0][0], torch.from_numpy(Tones(["low"], 2_000)[0][0][:800]))
    parts = {tuple(long.batch([0], (seed,))[0][0, :3].tolist()) for seed in range(4)}
    assert len(parts) > 1, "training takes a part at random"
    model = create_cnn(2)
    many = clips_of(labels=["low", "high"] * 3)
    together, alone = (predict_all(model, many, "cpu", batch_size)[0] for batch_size in (6, 1))
    torch.testing.assert_close(together, alone)


def test_augmentation_is_a_function_of_seed_and_clip():
    waveform = Tones(["low"])[0][0]

    def varied(seed, **settings):
        return Augmentation(**settings).apply(waveform, 8_000, np.random.default_rng(seed))

    np.testing.assert_array_equal(varied(0), waveform)
    louder = varied(1, gain_db=6.0)
    gain = np.abs(louder).max() / np.abs(waveform).max()
    assert gain != pytest.approx(1, abs=0.01)
    assert 0.5 < gain < 2.0
    shifted = varied(1, shift_s=0.01)
    assert sorted(shifted.tolist()) == sorted(waveform.tolist())
    assert not np.array_equal(shifted, waveform)
    noise = varied(1, noise_db=20.0) - waveform
    level_db = 20 * np.log10(np.sqrt(np.mean(noise**2)) / np.sqrt(np.mean(waveform**2)))
    assert -41 < level_db < -19
    np.testing.assert_array_equal(varied(2, shift_s=0.01, noise_db=20.0), varied(2, shift_s=0.01, noise_db=20.0))


def test_speed_changes_pitch_and_keeps_the_length():
    clips = clips_of(augmentation=Augmentation(speeds=(1.25,)))
    varied = clips.batch([0, 1], (0, 0))[0].numpy()
    assert varied.shape == (2, 800)
    heard = [np.abs(np.fft.rfft(each[:640])).argmax() * 8_000 / 640 for each in varied]
    assert heard == pytest.approx([625, 1_875], abs=15)
    np.testing.assert_array_equal(change_speed(varied[0], 1.0), varied[0])
    long = Clips(Tones(["low"], samples=2_000), WORDS, 0.1, augmentation=Augmentation(speeds=(1.25,)))
    assert long.batch([0], (0, 0))[0][0, -20:].abs().max() > 0.1, "what is faster takes a longer part"


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_are_stripes_of_frames_and_bands_and_depend_on_the_generator_alone(axis):
    spectrogram = np.random.default_rng(0).standard_normal((20, 50) if axis == 0 else (50, 20)).astype(np.float32)

    def masked(seed, **shares):
        torch.manual_seed(seed + 100)  # of torch's own generator it is independent, and leaves it
        before = torch.get_rng_state()
        changed = Augmentation(**shares).mask(spectrogram, axis, np.random.default_rng(seed)) != spectrogram
        assert torch.equal(torch.get_rng_state(), before)
        return changed if axis == 0 else changed.T

    for seed in range(5):
        bands, frames = masked(seed, frequency_mask=0.5), masked(seed, time_mask=0.5)
        assert (bands.all(1) | ~bands.any(1)).all()
        assert (frames.all(0) | ~frames.any(0)).all()
        assert bands.any(1).sum() <= 10
        assert frames.any(0).sum() <= 25
        np.testing.assert_array_equal(masked(seed, time_mask=0.5), frames)
    assert any(masked(seed, frequency_mask=0.5).any() for seed in range(5))
    assert not masked(0).any()


def test_spectrograms_are_masked_in_training_alone(monkeypatch):
    def extract(waveform, sampling_rate, return_tensors):
        return {"input_values": waveform[None].reshape(1, 40, 20)}

    extractor = type("Extractor", (), {"sampling_rate": 8_000, "model_input_names": ["input_values"]})()
    type(extractor).__call__ = lambda self, *arguments, **options: extract(*arguments, **options)
    clips = clips_of(extractor=extractor, augmentation=Augmentation(time_mask=0.9))
    plain = clips.batch([0])[0]
    varied = [clips.batch([0], (seed,))[0] for seed in range(4)]
    assert any(not torch.equal(each, plain) for each in varied)
    torch.testing.assert_close(clips.batch([0])[0], plain)
    torch.testing.assert_close(clips.batch([0], (0,))[0], varied[0])


def test_two_clients_with_the_same_clips_vary_them_differently_and_each_the_same_way_again():
    def weights_of(client):
        seed_generators(f"0:0:{client}:train")
        model = create_cnn(2)
        train(model, clips_of(augmentation=Augmentation(noise_db=10.0)))
        return model[1].weight.detach()

    torch.testing.assert_close(weights_of("a"), weights_of("a"), rtol=0, atol=0)
    assert not torch.equal(weights_of("a"), weights_of("b"))


def test_left_out_labels_are_no_clips_and_the_node_weighs_by_the_others():
    targets = Targets("label", ("low", "high"), (("cough", None),))
    data = RecordingsData(targets, 0.1)
    shard = type("Shard", (), {"get_dataset": lambda self, split: Tones(["cough", "low", "high"])})()
    data.shard_descriptor = shard
    assert (data.get_train_data_size(), data.get_valid_data_size()) == (2, 2)
    assert data.get_valid_loader().batch([0, 1])[1].tolist() == [0, 1]


def test_another_rate_than_the_model_hears_is_refused():
    extractor = type("Extractor", (), {"sampling_rate": 16_000})()
    with pytest.raises(
        SettingsError, match="the model hears 16,000 Hz and the shard has 8,000 Hz: set sample_rate: 16000"
    ):
        clips_of(extractor=extractor)


def test_a_site_with_a_single_class_trains():
    model = create_cnn(2)
    metrics = train(model, clips_of(labels=["low"] * 4), balance="sampling")
    assert metrics["loss"] > 0
    assert train(create_cnn(2), clips_of(labels=["low"] * 4), balance="weights")["loss"] > 0
