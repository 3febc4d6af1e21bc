import itertools
import pickle

import numpy as np
import pytest
import torch

from openfl_audio.errors import SettingsError
from openfl_audio.node.progress import current
from tests.unit.workspaces.speech_recognition.speech import Shard, Spoken, draw_texts, tiny_recognizer
from workspaces.speech_recognition.data import BatchSize, Clips, SpeechData
from workspaces.speech_recognition.letters import decode, encode
from workspaces.speech_recognition.loss import ctc_loss
from workspaces.speech_recognition.masks import Masks
from workspaces.speech_recognition.tasks import (
    TrainingSettings,
    rates_by_speaker,
    recognize_all,
    train_round,
    validate_clips,
)

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def one_thread():
    """For models so small, threads cost more than they save, and much more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_clip_is_in_one_batch_of_an_epoch_with_its_own_text_and_sound():
    shard = Spoken(["AB", "", "DCB A", "C", "ABCD", "B D", "CA"])
    clips = Clips(shard)
    assert (len(clips), clips.num_words) == (6, 8)
    size = BatchSize(4)
    epochs = [[*map(clips.read, clips.cut_epoch(size, np.random.default_rng(seed)))] for seed in (0, 0, 1)]
    assert [[batch.names for batch in epoch] for epoch in epochs[:1]] == [[b.names for b in epochs[1]]]
    assert [batch.names for batch in epochs[0]] != [batch.names for batch in epochs[2]]
    for epoch in (*epochs, [batch for _, batch in clips.validation_batches(size)]):
        assert sorted(name for batch in epoch for name in batch.names) == [f"clip-{i}" for i in (0, 2, 3, 4, 5, 6)]
        for batch in epoch:
            for row, name in enumerate(batch.names):
                number = int(name[5:])
                assert batch.texts[row] == shard.transcripts[number]
                waveform = torch.from_numpy(shard.read_waveform(number))
                assert torch.equal(batch.waveforms[row, : batch.lengths[row]], waveform)
                assert not batch.waveforms[row, batch.lengths[row] :].any()


def test_how_many_clips_have_no_transcript_is_said(caplog):
    Clips(Spoken(["A", "", "12"]))
    assert "2 of 3 clips have no transcript and are left out" in caplog.text


def test_the_loss_is_the_sum_over_all_ways_to_lay_the_letters_out():
    """For four frames, by going through all 29^4 of them in the three classes that matter."""
    logits = torch.randn(1, 4, 29)
    probabilities = logits.softmax(-1)[0]
    total = sum(
        torch.stack([probabilities[frame, label] for frame, label in enumerate(path)]).prod()
        for path in itertools.product([0, *encode("ab")], repeat=4)
        if decode(torch.tensor(path)) == "ab"
    )
    torch.testing.assert_close(ctc_loss(logits, torch.tensor([4]), ["ab"], ["clip"]), -torch.log(total))


def test_a_transcript_that_is_too_long_for_its_clip_is_named(tmp_path):
    model = tiny_recognizer(tmp_path).eval()
    batch = Clips(Spoken(["ABBA"])).read([0])
    batch.lengths[:] = 400 + 3 * 320
    with pytest.raises(SettingsError, match="clip clip-0 has 4 frames: its transcript needs 5"):
        model.loss_of(batch, "cpu")


def test_a_recognizer_learns_to_spell_and_a_round_is_a_function_of_torchs_seed(tmp_path):
    data = pickle.loads(pickle.dumps(SpeechData()))  # as it comes out of an experiment's archive
    data.shard_descriptor = Shard(draw_texts(64, seed=0), draw_texts(16, seed=1))
    train, validation = data.get_train_loader(), data.get_valid_loader()
    assert data.get_train_data_size() == 64
    assert data.get_valid_data_size() == sum(len(text.split()) for text in validation.texts)

    def run(rounds: int):
        model = tiny_recognizer(tmp_path)
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
        settings = TrainingSettings(rounds=4, learning_rate=5e-3, local_epochs=4, batch_size=4)
        metrics = []
        for number in range(rounds):
            torch.manual_seed(number)
            metrics.append(train_round(model, train, optimizer, "cpu", number, settings))
        return model, metrics

    start = validate_clips(tiny_recognizer(tmp_path), validation, "cpu")
    model, metrics = run(4)
    end = validate_clips(model, validation, "cpu")
    assert start["wer"] >= 0.99
    assert end["wer"] < 0.2
    assert end["cer"] < 0.1
    assert end["loss"] < start["loss"] / 5
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 5
    assert run(1)[1] == metrics[:1]
    assert (current().step, current().total, current().clips) == (64, 64, 256)
    # All in one batch or one by one: the sums are the same.
    assert validate_clips(model, validation, "cpu", batch_size=1) == pytest.approx(end, rel=1e-4)


def test_without_clips_there_is_a_sentence(tmp_path):
    model, none = tiny_recognizer(tmp_path), Clips(Spoken([""]))
    with pytest.raises(ValueError, match="there are no clips with a transcript to validate with"):
        validate_clips(model, none, "cpu")
    with pytest.raises(ValueError, match="there are no clips with a transcript to train with"):
        train_round(model, none, torch.optim.SGD(model.parameters()), "cpu", 0, TrainingSettings(1, 0.1))


def test_batches_by_seconds_hold_what_fits_with_the_padding():
    clips = Clips(Spoken(["AB", "A", "ABCD", "ABCDAB", "AB", "ABC", "A" * 40]))
    for batch in clips.cut_epoch(BatchSize(8, seconds=1.0), np.random.default_rng(0)):
        longest = max(clips.num_samples[batch])
        assert len(batch) == 1 or len(batch) * longest <= 16_000
    sizes = sorted(map(len, clips.cut_epoch(BatchSize(8, seconds=1.0), np.random.default_rng(0))))
    assert sizes[-1] >= 3
    assert sum(sizes) == 7


def test_masks_cover_their_share_of_a_clip_and_none_of_a_frame_without_one():
    torch.manual_seed(0)
    values, frames = torch.ones(20, 200, 10), torch.tensor([200] * 10 + [100] * 10)
    masked = Masks(time=0.2, time_frames=10).apply(values, frames)
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    covered = 1 - masked[:10].mean().item()
    assert 0.12 < covered < 0.22  # stripes may overlap
    assert masked[10:, 110:].all()
    striped = Masks(features=0.4).apply(values, frames)
    widths = (striped[:, 0] == 0).sum(1)
    assert (striped == striped[:, :1]).all()  # whole channels
    assert widths.max() <= 4
    assert widths.max() > 0
    assert Masks().apply(values, frames) is values


def test_error_rates_of_speakers_are_those_of_their_clips(tmp_path):
    clips = Clips(Spoken(["AB", "AB CD", "D", "A"]))
    recognized = ["ab", "ab", "c", "a"]
    assert rates_by_speaker(recognized, clips) == {"first": pytest.approx(1 / 3), "second": pytest.approx(1 / 2)}
    model = tiny_recognizer(tmp_path)
    texts, total, letters = recognize_all(model, clips, "cpu", batch_size=3)
    assert (len(texts), letters) == (4, 2 + 5 + 1 + 1)
    assert total > 0
