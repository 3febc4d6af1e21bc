"""The SUPERB shard descriptor: splits, labels, audio, the test split, partitions."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.superb import SuperbShardDescriptor
from shard_descriptors.superb.layout import KEYWORDS, LABELS, SILENCE, UNKNOWN
from tests.unit.shard_descriptors.superb_shards import REPOSITORY, all_shards, descriptor, make_test_set

REAL_CORPUS = REPOSITORY.parent / "shared" / "data" / "speech_commands"


# Splits, labels and audio


def test_splits_are_those_of_the_lists_and_noise_trains(corpus):
    shard = descriptor(corpus)
    assert shard.get_dataset("train").files == sorted(corpus.clips["train"]) + corpus.noise
    assert shard.get_dataset("validation").files == sorted(corpus.clips["validation"])


def test_every_item_is_the_sound_of_its_file_with_its_label_and_speaker(corpus, frequency_of):
    shard = descriptor(corpus)
    for split in ("train", "validation", "test"):
        dataset = shard.get_dataset(split)
        spoken = [i for i in range(len(dataset)) if dataset.labels[i] != SILENCE]
        assert spoken
        for i in spoken:
            waveform, label = dataset[i]
            assert frequency_of(waveform) == corpus.tones[dataset.files[i]]
            assert (waveform.shape, waveform.dtype, type(label)) == ((16_000,), np.float32, int)
            word, name = dataset.files[i].split("/")
            assert LABELS[label] == (word if word in KEYWORDS else "_unknown_")
            assert label == dataset.labels[i]
            assert name.startswith(f"{dataset.speakers[i]}_nohash_")


def test_labels_are_in_the_order_of_superb():
    order = "yes no up down left right on off stop go _silence_ _unknown_"
    assert " ".join(LABELS) == order


def test_reading_past_the_end_raises_and_the_last_can_be_counted_from_behind(corpus, frequency_of):
    dataset = descriptor(corpus).get_dataset("validation")
    assert len(list(dataset)) == len(dataset)
    assert frequency_of(dataset[-1][0]) == corpus.tones[dataset.files[-1]]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_short_clips_are_padded_at_the_end_and_long_ones_keep_their_first_second(own_corpus, make_tone):
    short, long = own_corpus.clips["train"][:2]
    soundfile.write(own_corpus.root / short, make_tone(300, seconds=0.25), 16_000)
    soundfile.write(own_corpus.root / long, np.concatenate([make_tone(500), make_tone(900)]), 16_000)
    dataset = descriptor(own_corpus).get_dataset("train")
    waveform = dataset[dataset.files.index(short)][0]
    np.testing.assert_allclose(waveform[:4_000], make_tone(300)[:4_000], atol=2**-15)
    np.testing.assert_array_equal(waveform[4_000:], np.zeros(12_000))
    np.testing.assert_allclose(dataset[dataset.files.index(long)][0], make_tone(500), atol=2**-15)


def test_stereo_8_khz_and_48_khz_clips_sound_as_they_should(own_corpus, make_tone, frequency_of):
    stereo, narrow, wide = own_corpus.clips["train"][:3]
    soundfile.write(own_corpus.root / stereo, np.stack([make_tone(600), make_tone(600)], axis=1), 16_000)
    soundfile.write(own_corpus.root / narrow, make_tone(700, 8_000), 8_000)
    soundfile.write(own_corpus.root / wide, make_tone(800, 48_000), 48_000)
    shard = descriptor(own_corpus)
    dataset = shard.get_dataset("train")
    heard = [dataset[dataset.files.index(file)][0] for file in (stereo, narrow, wide)]
    assert [frequency_of(waveform) for waveform in heard] == [600, 700, 800]
    assert {waveform.shape for waveform in heard} == {(16_000,)}
    assert shard.left_out == {}


def test_shapes_are_strings_as_openfl_wants_them(corpus):
    assert (descriptor(corpus).sample_shape, descriptor(corpus).target_shape) == (["16000"], ["1"])


def test_an_unknown_split_lists_the_known_ones(corpus):
    with pytest.raises(CorpusError, match="no split 'val'; the splits are train, validation, test"):
        descriptor(corpus).get_dataset("val")


def test_a_dataset_survives_the_way_into_a_worker_process(corpus):
    dataset = descriptor(corpus).get_dataset("train")
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[0][0], dataset[0][0])


# The test split


def test_without_the_published_test_set_one_is_made_in_its_proportions(corpus):
    dataset = descriptor(corpus).get_dataset("test")
    keyword_clips = [file for file in corpus.clips["testing"] if file.split("/")[0] in KEYWORDS]
    assert len(keyword_clips) == 15
    assert sorted(file for file, label in zip(dataset.files, dataset.labels, strict=True) if label < SILENCE) == sorted(
        keyword_clips
    )
    assert Counter(dataset.labels.tolist())[UNKNOWN] == 2  # 15 / 10, rounded up
    assert Counter(dataset.labels.tolist())[SILENCE] == 2
    assert set(dataset.files) - set(corpus.noise) <= set(corpus.clips["testing"])


def test_made_silence_is_at_fixed_places_of_different_noise_files(own_corpus):
    extra = [f"go/cc03_nohash_{i}.wav" for i in range(40)]  # 55 keyword clips: 6 of silence on 3 noise files
    (own_corpus.root / "go").mkdir()
    for file in extra:
        shutil.copy(own_corpus.root / own_corpus.clips["train"][0], own_corpus.root / file)
    with (own_corpus.root / "testing_list.txt").open("a") as listing:
        listing.write("\n".join(extra))
    dataset = descriptor(own_corpus).get_dataset("test")
    silent = np.flatnonzero(dataset.labels == SILENCE)
    begins = sorted(float(dataset[i][0][0]) for i in silent)
    # Two seconds from each file of five: they begin at a quarter and at three quarters of its first four seconds.
    expected = [0.1 * (k + fraction * 4 / 5) for k in range(3) for fraction in (0.25, 0.75)]
    np.testing.assert_allclose(begins, expected, atol=1e-5)
    assert [float(dataset[i][0][0]) for i in silent] == [float(dataset[i][0][0]) for i in silent]


@pytest.mark.parametrize("place", [".", ".."], ids=["inside", "beside"])
def test_the_published_test_set_is_used_where_it_lies(own_corpus, make_tone, frequency_of, place):
    make_test_set(own_corpus.root / place / "speech_commands_test_set_v0.01", make_tone)
    shard = descriptor(own_corpus)
    dataset = shard.get_dataset("test")
    assert dataset.labels.tolist() == list(range(12))
    assert [frequency_of(waveform) for waveform, _ in dataset] == [3_000 + i for i in range(12)]
    assert set(dataset.speakers) == {"dd01", ""}
    assert len(shard.get_dataset("train")) == len(own_corpus.clips["train"]) + 3  # it did not become words
    beside = [own_corpus.root.parent / "speech_commands_test_set_v0.01"] if place == ".." else []
    assert (shard.reads, shard.needs_network) == ([own_corpus.root, *beside], False), "a sandbox is told of it"


def test_two_test_sets_raise(own_corpus, make_tone):
    for version in ("v0.01", "v0.02"):
        make_test_set(own_corpus.root / f"speech_commands_test_set_{version}", make_tone)
    with pytest.raises(CorpusError, match=r"set_v0.01, speech_commands_test_set_v0.02: keep the one that goes with"):
        descriptor(own_corpus)


def test_a_test_set_without_all_labels_raises(own_corpus, make_tone):
    make_test_set(own_corpus.root / "speech_commands_test_set_v0.01", make_tone)
    shutil.rmtree(own_corpus.root / "speech_commands_test_set_v0.01" / "_silence_")
    with pytest.raises(CorpusError, match="is not a published test set: it lacks the folders _silence_"):
        descriptor(own_corpus)


def test_test_speakers_that_train_are_told(own_corpus, caplog):
    train_clip = own_corpus.clips["train"][0]
    with (own_corpus.root / "testing_list.txt").open("a") as listing:
        listing.write(train_clip)
    descriptor(own_corpus)
    assert "1 test speakers are in train or validation too: aa01" in caplog.text


def test_validation_speakers_that_train_are_told(own_corpus, caplog):
    """A copy of a held-out clip under another name is no clip of a list, and trains."""
    clip = own_corpus.root / own_corpus.clips["validation"][0]
    speaker = clip.name.partition("_")[0]
    shutil.copy(clip, clip.with_name(clip.stem + " (1).wav"))
    descriptor(own_corpus)
    assert f"1 validation speakers are in train too: {speaker}" in caplog.text


def test_a_list_that_holds_out_nothing_is_told(own_corpus, caplog):
    (own_corpus.root / "testing_list.txt").write_text("\ufeff\n")
    descriptor(own_corpus)
    assert "testing_list.txt is empty: it holds out no clip" in caplog.text


# Partitions


@pytest.mark.parametrize(
    "params", [{}, {"partition": "speaker_groups", "speakers_per_group": 2}, {"partition": "clips"}], ids=str
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_shards_are_disjoint_and_complete(corpus, params, split):
    shards = all_shards(corpus, 3, **params)
    files = [file for shard in shards for file in shard.get_dataset(split).files]
    assert sorted(files) == sorted(descriptor(corpus).get_dataset(split).files)
    assert all(len(shard.get_dataset(split)) for shard in shards)
    if params.get("partition") != "clips":
        speakers = [set(shard.get_dataset(split).speakers) - {""} for shard in shards]
        assert sum(map(len, speakers)) == len(set.union(*speakers))


def test_noise_files_are_dealt_out(corpus):
    for params in ({}, {"partition": "clips"}):
        counts = [Counter(s.get_dataset("train").labels.tolist())[SILENCE] for s in all_shards(corpus, 3, **params)]
        assert counts == [1, 1, 1]


def test_speaker_groups_have_their_size(corpus):
    shards = all_shards(corpus, 3, partition="speaker_groups", speakers_per_group=2)
    assert [len(set(shard.get_dataset("train").speakers) - {""}) for shard in shards] == [2, 2, 2]


def test_a_speaker_of_train_and_validation_stays_on_one_node(own_corpus):
    moved = own_corpus.clips["train"][0]
    with (own_corpus.root / "validation_list.txt").open("a") as listing:
        listing.write(moved)
    for seed in range(5):  # by chance it would be on the same node once in three times
        owners = [
            shard for shard in all_shards(own_corpus, 3, seed=seed) if moved in shard.get_dataset("validation").files
        ]
        assert ["aa01" in shard.get_dataset("train").speakers for shard in owners] == [True]


def test_nodes_beyond_the_validation_speakers_have_nothing_to_validate_on(corpus):
    sizes = [len(shard.get_dataset("validation")) for shard in all_shards(corpus, 6)]
    assert [size > 0 for size in sizes] == [True, True, True, False, False, False]


def test_the_test_split_is_the_same_on_every_node(corpus):
    files = [shard.get_dataset("test").files for shard in all_shards(corpus, 3)]
    assert files[0] == files[1] == files[2] == descriptor(corpus).get_dataset("test").files


def test_the_seed_moves_speakers(corpus):
    assert len({tuple(all_shards(corpus, 3, seed=seed)[0].get_dataset("train").files) for seed in range(5)}) > 1


# Real recordings


@pytest.mark.skipif(not REAL_CORPUS.is_dir(), reason=f"no real recordings at {REAL_CORPUS}")
def test_real_recordings_are_dealt_out_and_read():
    shards = [SuperbShardDescriptor(REAL_CORPUS, f"{rank},3") for rank in (1, 2, 3)]
    train = [shard.get_dataset("train") for shard in shards]
    assert sum(map(len, train)) == 1_762 - 260 - 217 + 4
    assert all(shard.left_out == {} for shard in shards)
    test = shards[0].get_dataset("test")
    for dataset in (train[0], shards[0].get_dataset("validation"), test):
        for i in range(0, len(dataset), 29):
            waveform, _ = dataset[i]
            assert waveform.shape == (16_000,)
            assert 0 < np.abs(waveform).max() <= 1
    trained = set().union(*(dataset.speakers for dataset in train)) - {""}
    assert not trained & set(test.speakers)
