import pickle

import numpy as np
import pytest

from workspaces.keyword_spotting_wav2vec2.data import KeywordData, TrainClips, repeat_rare_labels


class Tones:
    """Three clips of label 0, one of label 1, two of label 2; clip i is a tone of amplitude i + 1 around i."""

    labels = np.array([0, 0, 0, 1, 2, 2])

    def __init__(self):
        self.epochs = []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        wave = np.sin(np.arange(16_000) * 0.01 * (index + 1)).astype(np.float32)
        return index + (index + 1) * wave, int(self.labels[index])

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class Shard:
    def get_dataset(self, split):
        return Tones()


@pytest.fixture
def data():
    data = pickle.loads(pickle.dumps(KeywordData()))  # as it comes out of an experiment's archive
    data.shard_descriptor = Shard()
    return data


def test_clips_have_mean_0_and_variance_1(data):
    clip = data.get_valid_loader()[3]
    assert clip["input_values"].dtype == np.float32
    assert clip["input_values"].shape == (16_000,)
    assert clip["input_values"].mean() == pytest.approx(0, abs=1e-4)
    assert clip["input_values"].std() == pytest.approx(1, abs=1e-3)
    assert clip["labels"] == 1


def test_rare_labels_are_repeated_for_training_and_not_for_validation(data):
    train, validation = data.get_train_loader(), data.get_valid_loader()
    assert [train[i]["labels"] for i in range(len(train))] == [0, 0, 0, 1, 1, 2, 2]
    assert [validation[i]["labels"] for i in range(len(validation))] == [0, 0, 0, 1, 2, 2]
    assert data.get_train_data_size() == 6  # what it weighs: a repeated clip is one clip
    assert data.get_valid_data_size() == 6


def test_repetition_loses_no_clip_and_copes_with_an_empty_shard():
    labels = np.random.default_rng(0).integers(0, 12, size=200)
    indices = repeat_rare_labels(labels)
    assert set(indices) == set(range(200))
    assert np.bincount(labels[indices]).min() >= int(np.median(np.bincount(labels)))
    assert len(repeat_rare_labels(np.array([], dtype=int))) == 0


def test_every_round_draws_anew_and_the_same_round_draws_the_same():
    tones = Tones()
    clips = TrainClips(tones)

    def draw(round_number):
        clips.begin_round(round_number)
        return np.stack([clips[i]["input_values"] for i in range(len(clips))])

    first, second, first_again = draw(0), draw(1), draw(0)
    np.testing.assert_array_equal(first, first_again)
    assert not np.array_equal(first, second)
    assert tones.epochs[-3:] == [0, 1, 0]


class Clicks(Tones):
    """Every clip is a click in the middle of the second."""

    def __getitem__(self, index):
        waveform = np.zeros(16_000, np.float32)
        waveform[8_000] = 1
        return waveform, 0


def test_a_shift_is_at_most_a_tenth_of_a_second():
    clips = TrainClips(Clicks())
    shifts = {int(np.argmax(clips[0]["input_values"])) - 8_000 for _ in range(200)}
    assert len(shifts) > 100
    assert min(shifts) < -1_000
    assert max(shifts) > 1_000
    assert max(map(abs, shifts)) <= 1_600
