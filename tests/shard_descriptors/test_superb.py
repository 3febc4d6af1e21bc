"""The SUPERB shard descriptor: splits, labels, audio, partitions, and what it says about corpora that are not right."""

import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import yaml

from shard_descriptors import speech_commands
from shard_descriptors.audio import AudioError
from shard_descriptors.errors import CorpusError
from shard_descriptors.speech_commands import KEYWORDS, LABELS, SILENCE, UNKNOWN, Counts, read_corpus, read_folder
from shard_descriptors.superb import SuperbShardDescriptor

REPOSITORY = Path(__file__).parents[2]
REAL_CORPUS = REPOSITORY.parent / "shared" / "data" / "speech_commands"


def descriptor(corpus, **params):
    return SuperbShardDescriptor(data_path=str(corpus.root), **params)


def all_shards(corpus, world_size, **params):
    return [descriptor(corpus, rank_worldsize=f"{rank},{world_size}", **params) for rank in range(1, world_size + 1)]


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


# Silence


def starts(dataset, reads):
    """The first value of each cut out of the first noise file; the ramp's value is its place."""
    item = dataset.files.index("_background_noise_/noise_0.wav")
    return [float(dataset[item][0][0]) for _ in range(reads)]


def test_silence_is_a_new_second_of_the_noise_file_at_each_access(corpus):
    dataset = descriptor(corpus).get_dataset("train")
    for k, file in enumerate(corpus.noise):
        item = dataset.files.index(file)
        cuts = [dataset[item][0] for _ in range(20)]
        assert dataset[item][1] == SILENCE
        assert all(len(cut) == 16_000 for cut in cuts)
        assert all(0.1 * k - 1e-6 <= cut.min() and cut.max() <= 0.1 * (k + 1) + 1e-6 for cut in cuts)  # this file
        assert all(cut[-1] - cut[0] == pytest.approx(0.1 / 5, rel=0.01) for cut in cuts)  # one second of its five
        assert len({float(cut[0]) for cut in cuts}) == 20
        assert np.ptp([cut[0] for cut in cuts]) > 0.04  # all over the four seconds where a cut may begin


def test_random_cuts_are_a_function_of_seed_epoch_and_access(corpus):
    dataset = descriptor(corpus, seed=1).get_dataset("train")
    first = starts(dataset, 3)
    dataset.set_epoch(1)
    second = starts(dataset, 3)
    dataset.set_epoch(0)
    assert starts(dataset, 3) == first
    assert starts(descriptor(corpus, seed=1).get_dataset("train"), 3) == first
    assert not set(second) & set(first)
    assert not set(starts(descriptor(corpus, seed=2).get_dataset("train"), 3)) & set(first)


# Silence as a share of the clips


def silence_of(dataset):
    """(file, place in its five seconds) of each silent item; the ramp's value is its place."""
    items = np.flatnonzero(dataset.labels == SILENCE)
    begins = {dataset.files[i]: 0.1 * int(dataset.files[i][-5]) for i in items}
    return [(dataset.files[i], (float(dataset[i][0][0]) - begins[dataset.files[i]]) / 0.1 * 5) for i in items]


@pytest.mark.parametrize("share", [0.1, 0.25, 1])
def test_every_shard_has_its_share_of_silence_after_its_spoken_clips(corpus, share):
    for whole, shard in zip(all_shards(corpus, 3), all_shards(corpus, 3, silence_share=share), strict=True):
        dataset, without = shard.get_dataset("train"), whole.get_dataset("train")
        spoken = [file for file in without.files if file not in corpus.noise]
        assert dataset.files[: len(spoken)] == spoken
        assert set(dataset.files[len(spoken) :]) <= set(corpus.noise)
        assert len(dataset) - len(spoken) == {0.1: (len(spoken) + 9) // 10, 0.25: (len(spoken) + 3) // 4}.get(
            share, len(spoken)
        )
        assert set(dataset.labels[len(spoken) :]) == {SILENCE}
        assert set(dataset.speakers[len(spoken) :]) == {""}
        for split in ("validation", "test"):
            assert shard.get_dataset(split).files == whole.get_dataset(split).files


def test_seconds_of_silence_are_spread_over_all_noise_files_and_within_each(corpus):
    seconds = silence_of(descriptor(corpus, silence_share=1.0).get_dataset("train"))
    places = {file: sorted(place for name, place in seconds if name == file) for file in corpus.noise}
    assert sorted(map(len, places.values())) == [21, 22, 22]  # 65 spoken clips
    for begins in places.values():
        # A second may begin in the first four of five: one begins in each of as many equal parts. A cut begins at a
        # whole sample, so at the edge of a part half a sample counts as the next one.
        parts = [(begin + 0.5 / 16_000) / 4 * len(begins) for begin in begins]
        assert all(i - 1e-3 <= part < i + 1 + 1e-3 for i, part in enumerate(parts))
        assert np.ptp(np.diff(begins)) > 0.01  # drawn, not a grid


def test_seconds_of_silence_are_functions_of_seed_and_rank_alone(corpus):
    def seconds(rank, **params):
        return silence_of(
            descriptor(corpus, rank_worldsize=f"{rank},3", silence_share=0.5, **params).get_dataset("train")
        )

    dataset = descriptor(corpus, rank_worldsize="1,3", silence_share=0.5).get_dataset("train")
    first = silence_of(dataset)
    assert silence_of(dataset) == first
    dataset.set_epoch(1)
    assert silence_of(dataset) == first
    assert seconds(1) == first
    assert not set(seconds(2)) & set(first)
    assert not set(seconds(1, seed=1)) & set(first)


def test_a_share_of_silence_is_in_summary_and_description(corpus):
    shard = descriptor(corpus, silence_share=0.1)
    assert "1 of 1 by speaker: 72 train clips (7 of silence) of 6 speakers" in shard.summary
    description = yaml.safe_load(shard.dataset_description)
    assert description["silence_share"] == 0.1
    assert description["train"]["_silence_"] == 7
    assert "_silence_" not in description["validation"]
    assert "silence" not in descriptor(corpus).dataset_description.replace("_silence_", "")


def test_an_unusable_noise_file_leaves_the_seconds_to_the_others(own_corpus):
    (own_corpus.root / own_corpus.noise[1]).write_bytes(b"")
    for shard in all_shards(own_corpus, 3, silence_share=1.0):
        files = Counter(shard.get_dataset("train").files)
        assert files[own_corpus.noise[1]] == 0
        assert 2 * (files[own_corpus.noise[0]] + files[own_corpus.noise[2]]) == sum(files.values())
        assert shard.left_out == {own_corpus.noise[1]: "is empty (0 bytes)"}


def test_a_share_of_silence_without_a_usable_noise_file_raises(own_corpus):
    for file in own_corpus.noise:
        (own_corpus.root / file).write_bytes(b"")
    sentence = r"silence_share: 0.1 is cut out of noise files, and .* has none of them; left out 3 files: _background_n"
    with pytest.raises(CorpusError, match=sentence):
        descriptor(own_corpus, silence_share=0.1)
    assert SILENCE not in descriptor(own_corpus).get_dataset("train").labels


def test_silence_alone_is_no_train_split(own_corpus):
    for file in own_corpus.clips["train"]:
        (own_corpus.root / file).write_bytes(b"")
    with pytest.raises(CorpusError, match="no train clip for shard 1 of 1; left out 65 files: bed/aa01_nohash_0"):
        descriptor(own_corpus, silence_share=0.1)


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


def make_test_set(folder: Path, make_tone) -> None:
    for i, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        name = "0.wav" if label in ("_silence_", "_unknown_") else "dd01_nohash_0.wav"  # any name will do there
        soundfile.write(folder / label / name, make_tone(3_000 + i), 16_000)


@pytest.mark.parametrize("place", [".", ".."], ids=["inside", "beside"])
def test_the_published_test_set_is_used_where_it_lies(own_corpus, make_tone, frequency_of, place):
    make_test_set(own_corpus.root / place / "speech_commands_test_set_v0.01", make_tone)
    shard = descriptor(own_corpus)
    dataset = shard.get_dataset("test")
    assert dataset.labels.tolist() == list(range(12))
    assert [frequency_of(waveform) for waveform, _ in dataset] == [3_000 + i for i in range(12)]
    assert set(dataset.speakers) == {"dd01", ""}
    assert len(shard.get_dataset("train")) == len(own_corpus.clips["train"]) + 3  # it did not become words


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


# Many shards in one process


def test_a_corpus_is_read_once_however_it_is_named(corpus, monkeypatch, tmp_path):
    once = read_corpus(corpus.root, 0)
    (tmp_path / "link").symlink_to(corpus.root)
    monkeypatch.chdir(corpus.root.parent)
    names = [str(corpus.root), corpus.root.name, f"{corpus.root}/../{corpus.root.name}/", tmp_path / "link"]
    assert all(read_corpus(name, 0) is once for name in names)


def test_a_folder_that_changed_is_read_again_and_open_shards_keep_what_they_had(own_corpus, make_tone):
    def files(split):
        return descriptor(own_corpus).get_dataset(split).files

    open_shard = descriptor(own_corpus)
    before = files("train")
    added = "yes/aa09_nohash_0.wav"
    soundfile.write(own_corpus.root / added, make_tone(300), 16_000)
    assert sorted(files("train")) == sorted([*before, added])
    assert open_shard.get_dataset("train").files == before

    with (own_corpus.root / "validation_list.txt").open("a") as listing:
        listing.write(added)
    assert added in files("validation")

    make_test_set(own_corpus.root.parent / "speech_commands_test_set_v0.01", make_tone)
    assert len(files("test")) == 12
    (own_corpus.root.parent / "speech_commands_test_set_v0.01" / "yes" / "dd01_nohash_0.wav").unlink()
    assert len(files("test")) == 11

    shutil.rmtree(own_corpus.root)
    with pytest.raises(CorpusError, match="there is no folder"):
        descriptor(own_corpus)


def test_a_file_is_looked_at_when_its_split_is_asked_for_and_once_per_process(own_corpus):
    first, second = own_corpus.clips["train"][:2]
    testing = own_corpus.clips["testing"][0]
    shard = descriptor(own_corpus)
    (own_corpus.root / second).write_bytes(b"")
    (own_corpus.root / testing).write_bytes(b"")
    assert second not in shard.get_dataset("train").files
    assert sorted(shard.left_out) == sorted([second, testing])
    (own_corpus.root / first).write_bytes(b"")
    assert first in descriptor(own_corpus).get_dataset("train").files  # overwritten in place: not looked at again


def test_what_an_envoy_registers_names_the_unusable_files_of_every_split(own_corpus, caplog):
    bad = [own_corpus.clips[split][0] for split in ("train", "validation", "testing")]
    for file in bad:
        (own_corpus.root / file).write_bytes(b"")
    for _ in range(2):
        description = yaml.safe_load(descriptor(own_corpus).dataset_description)
        for file in bad:
            assert f"{file} is empty (0 bytes)" in description["summary"]
            assert caplog.text.count(f"left out 1 file: {file} is empty (0 bytes)") == 1  # once per process


def test_a_further_shard_costs_neither_a_pass_over_the_corpus_nor_memory(own_corpus):
    recording = own_corpus.root / own_corpus.clips["train"][0]
    for i in range(3_000):
        (own_corpus.root / f"yes/ee{i % 100:02d}_nohash_{i}.wav").hardlink_to(recording)
    begin = time.perf_counter()
    shards = [descriptor(own_corpus, rank_worldsize="1,100")]
    first_s = time.perf_counter() - begin
    shards[0].get_dataset("test")
    tracemalloc.start()
    seconds = []
    try:
        for rank in range(2, 42):
            begin = time.perf_counter()
            shards.append(descriptor(own_corpus, rank_worldsize=f"{rank},100"))
            seconds.append(time.perf_counter() - begin)
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert min(seconds) < first_s / 5  # a fiftieth, on an idle machine and without tracemalloc
    assert grown_bytes / 40 < 10_000  # the clips of the corpus, or pointers to them, take 25,000 and more


def test_with_as_many_nodes_as_natural_clients_each_is_one_speaker_or_group(corpus):
    for params, speakers in (
        ({}, [1] * 6),
        ({"partition": "speaker_groups", "speakers_per_group": 2}, [2] * 3),
        ({"partition": "speaker_groups", "speakers_per_group": 4}, [6]),
    ):
        clients = SuperbShardDescriptor.natural_clients(str(corpus.root), **params)
        trained = [set(s.get_dataset("train").speakers) - {""} for s in all_shards(corpus, clients, **params)]
        assert [len(names) for names in trained] == speakers
        assert len(set.union(*trained)) == 6
        with pytest.raises(CorpusError, match=f"{clients + 1} nodes cannot share {clients} "):
            descriptor(corpus, rank_worldsize=f"1,{clients + 1}", **params)


def test_clips_have_no_natural_clients(corpus):
    sentence = "partition: clips has no natural clients; choose speaker or speaker_groups"
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor.natural_clients(corpus.root, "clips")
    with pytest.raises(CorpusError, match="speakers_per_group: None should be a whole number from 1 on"):
        SuperbShardDescriptor.natural_clients(corpus.root, "speaker_groups")


@pytest.mark.parametrize(
    "params", [{}, {"partition": "speaker_groups", "speakers_per_group": 2}, {"partition": "clips"}], ids=str
)
@pytest.mark.parametrize("share", [None, 0.1, 0.7])
def test_clips_per_client_are_those_of_the_shards(corpus, params, share):
    params = {**params, "seed": 1, "silence_share": share}
    clips = SuperbShardDescriptor.clips_per_client(str(corpus.root), 3, **params)
    assert clips.tolist() == [len(shard.get_dataset("train")) for shard in all_shards(corpus, 3, **params)]
    assert (clips.shape, clips.dtype) == ((3,), np.int64)


def test_clips_per_client_of_more_nodes_than_clips_are_0_for_the_last(corpus):
    clips = SuperbShardDescriptor.clips_per_client(corpus.root, 70, partition="clips", silence_share=0.1)
    assert sorted(clips.tolist()) == [0] * 5 + [2] * 65


@pytest.mark.parametrize(
    ("world_size", "params", "sentence"),
    [
        (0, {}, "world_size: 0 should be a whole number from 1 on"),
        ("3", {}, "world_size: '3' should be a whole number from 1 on"),
        (True, {}, "world_size: True should be a whole number from 1 on"),
        (7, {}, "7 nodes cannot share 6 speakers"),
        (3, {"silence_share": 2}, "silence_share: 2 should be a number above 0, and 1 at most"),
        (3, {"partition": "uploader"}, "partition: 'uploader' is unknown"),
    ],
)
def test_clips_per_client_of_a_wrong_parameter_raises(corpus, world_size, params, sentence):
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor.clips_per_client(corpus.root, world_size, **params)


# Complete and incomplete corpora

COMPLETE = {  # version: clips in train, validation list, testing list; keywords in the testing list
    "v0.01": (51_088, 6_798, 6_835, 2_567),
    "v0.02": (84_843, 9_981, 11_005, 4_074),
}


def touch_corpus(root: Path, version: str) -> None:
    """A corpus of the published size whose files are all empty: counting looks at names only."""
    train, validation, testing, keywords = COMPLETE[version]
    (root / "_background_noise_").mkdir(parents=True)
    for k in range(6):
        (root / "_background_noise_" / f"{k}.wav").touch()
    names = {}
    sizes = {"train": (18_000, train), "validation": (2_500, validation), "testing": (keywords, testing)}
    for split, (keyword_clips, clips) in sizes.items():
        words = ["yes"] * keyword_clips + ["bed"] * (clips - keyword_clips)
        names[split] = [f"{word}/{split}{i % 300:03d}_nohash_{i}.wav" for i, word in enumerate(words)]
    for word in ("yes", "bed"):
        (root / word).mkdir()
    for files in names.values():
        for file in files:
            os.close(os.open(root / file, os.O_CREAT))
    for split in ("validation", "testing"):
        (root / f"{split}_list.txt").write_text("\n".join(names[split]))


def test_the_complete_v001_corpus_counts_as_superb_does(tmp_path):
    root = tmp_path / "speech_commands_v0.01"
    touch_corpus(root, "v0.01")
    try:
        corpus = read_folder(root, seed=0)
        assert corpus.counts == (51_094, 6_798, 3_081)
        assert corpus.version == "v0.01"
        labels = Counter(clip.label for clip in corpus.splits["test"])
        assert (labels[SILENCE], labels[UNKNOWN]) == (257, 257)

        # The number of clips is right, and the lists are not.
        shutil.copy(root / "validation_list.txt", tmp_path)
        lines = (root / "validation_list.txt").read_text().splitlines()
        (root / "validation_list.txt").write_text("\n".join(lines[1:]))
        counted = "but its splits count 51,095 / 6,797 / 3,081 where 51,094 / 6,798 / 3,081 is published"
        with pytest.raises(CorpusError, match=f"the 64,721 word clips of Speech Commands v0.01, {counted}"):
            read_folder(root, seed=0)

        # A clip is gone: not the complete corpus.
        shutil.copy(tmp_path / "validation_list.txt", root)
        (root / lines[0]).unlink()
        corpus = read_folder(root, seed=0)
        assert (corpus.version, corpus.counts, corpus.missing) == (None, (51_094, 6_797, 3_081), (lines[0],))
    finally:
        shutil.rmtree(root)  # pytest would keep three times 64,721 files


def test_the_published_counts_follow_from_the_lists():
    for word_clips, (version, counts) in speech_commands.PUBLISHED.items():
        train, validation, testing, keywords = COMPLETE[version]
        assert train + validation + testing == word_clips
        assert counts == (train + 6, validation, keywords + 2 * -(-keywords // 10))


def test_the_description_of_a_complete_corpus_says_so(corpus, own_corpus, monkeypatch):
    incomplete = descriptor(corpus)
    assert "of an incomplete Speech Commands (68 / 20 / 19 in all; v0.01 has 51,094 / 6,798 / 3,081" in (
        incomplete.summary
    )
    words = sum(map(len, corpus.clips.values()))
    monkeypatch.setitem(speech_commands.PUBLISHED, words, ("v0.00", Counts(68, 20, 19)))
    complete = descriptor(own_corpus).summary
    assert complete.endswith("of the complete Speech Commands v0.00 (68 / 20 / 19 in all)")


def test_the_registry_gets_the_clips_of_each_label_as_yaml(corpus):
    shard = descriptor(corpus)
    description = yaml.safe_load(shard.dataset_description)
    assert description["corpus"] == "superb"
    assert description["summary"] == shard.summary
    for split in ("train", "validation"):
        labels = [LABELS[label] for label in shard.get_dataset(split).labels]
        assert description[split] == {label: labels.count(label) for label in LABELS if label in labels}


def test_the_description_is_one_line_with_the_numbers_of_the_shard(corpus):
    shard = descriptor(corpus, rank_worldsize="2,3")
    train, validation = shard.get_dataset("train"), shard.get_dataset("validation")
    assert shard.summary.startswith(
        f"SUPERB keyword spotting, shard 2 of 3 by speaker: {len(train)} train clips of "
        f"{len(set(train.speakers) - {''})} speakers, {len(validation)} validation clips of 1, 19 test clips, of an inc"
    )
    assert "\n" not in shard.summary


# Bad input


def test_unusable_files_are_left_out_counted_and_named(own_corpus, caplog, make_tone):
    empty, text, no_samples, fourth = own_corpus.clips["train"][:4]
    (own_corpus.root / empty).write_bytes(b"")
    (own_corpus.root / text).write_text("this is a text\n" * 100)
    soundfile.write(own_corpus.root / no_samples, np.zeros(0, np.float32), 16_000)
    (own_corpus.root / fourth).write_bytes(b"RIFF")
    shard = descriptor(own_corpus)
    assert shard.left_out[empty] == "is empty (0 bytes)"
    assert shard.left_out[text].startswith("is not audio (Format not recognised")
    assert shard.left_out[no_samples] == "is empty (0 samples)"
    assert sorted(shard.left_out) == sorted([empty, text, no_samples, fourth])
    files = shard.get_dataset("train").files
    assert not set(files) & set(shard.left_out)
    assert len(files) == len(own_corpus.clips["train"]) + 3 - 4
    said = f"left out 4 files: {empty} is empty (0 bytes), {text} is not audio"
    assert said in shard.summary
    assert shard.summary.endswith("and 1 more")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert said in warnings[0]


def test_a_bad_file_concerns_only_the_node_that_has_it(own_corpus):
    bad = own_corpus.clips["train"][0]
    (own_corpus.root / bad).write_bytes(b"")
    left_out = [shard.left_out for shard in all_shards(own_corpus, 3)]
    assert sorted(map(len, left_out)) == [0, 0, 1]
    files = [file for shard in all_shards(own_corpus, 3) for file in shard.get_dataset("train").files]
    assert sorted([*files, bad]) == sorted(own_corpus.clips["train"] + own_corpus.noise)


def test_a_file_that_only_decoding_shows_to_be_bad_raises_when_read(own_corpus, make_tone):
    bad = sorted(own_corpus.clips["train"])[0]
    soundfile.write(own_corpus.root / bad, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=f"{bad}: has samples that are NaN or infinite"):
        descriptor(own_corpus).get_dataset("train")[0]


def test_files_that_the_lists_name_but_that_are_not_there_are_told(own_corpus, caplog):
    gone = own_corpus.clips["validation"][0]
    (own_corpus.root / gone).unlink()
    shard = descriptor(own_corpus)
    assert shard.missing == (gone,)
    assert f"its lists name 1 file not there: {gone}" in shard.summary
    assert f"its lists name 1 file not there: {gone}" in caplog.text
    assert gone not in shard.get_dataset("validation").files


def test_a_shard_without_a_usable_train_clip_raises(own_corpus):
    for file in own_corpus.clips["train"] + own_corpus.noise:
        (own_corpus.root / file).write_bytes(b"")
    with pytest.raises(CorpusError, match="no train clip for shard 1 of 1; left out 68 files: bed/aa01_nohash_0"):
        descriptor(own_corpus)


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(CorpusError, match=r"data_path: there is no folder .*/nowhere"):
        SuperbShardDescriptor(data_path=str(tmp_path / "nowhere"))


def test_a_file_in_place_of_a_folder_raises(corpus):
    with pytest.raises(CorpusError, match=r"data_path: .*/testing_list.txt is a file, not a folder"):
        SuperbShardDescriptor(data_path=str(corpus.root / "testing_list.txt"))


def test_an_empty_folder_raises(tmp_path):
    with pytest.raises(CorpusError, match=r"data_path: the folder .* is empty"):
        SuperbShardDescriptor(data_path=str(tmp_path))


def test_a_folder_of_something_else_raises_and_says_what_it_lacks(tmp_path):
    (tmp_path / "FSD50K.dev_audio").mkdir()
    lacks = r"validation_list.txt; testing_list.txt; _background_noise_/\*.wav; a folder of any keyword \(yes, no, up, "
    with pytest.raises(CorpusError, match=f"is not a Speech Commands folder: it lacks {lacks}"):
        SuperbShardDescriptor(data_path=str(tmp_path))


def test_a_speech_commands_folder_without_one_list_raises(own_corpus):
    (own_corpus.root / "validation_list.txt").unlink()
    with pytest.raises(CorpusError, match=r"is not a Speech Commands folder: it lacks validation_list.txt$"):
        descriptor(own_corpus)


def test_a_clip_in_both_lists_raises(own_corpus):
    twice = own_corpus.clips["testing"][0]
    with (own_corpus.root / "validation_list.txt").open("a") as listing:
        listing.write(twice)
    with pytest.raises(CorpusError, match=f"validation_list.txt and testing_list.txt both name {twice}"):
        descriptor(own_corpus)


def test_a_clip_that_does_not_name_its_speaker_raises(own_corpus):
    (own_corpus.root / "yes" / "recording.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"but no speaker is named by yes/recording.wav$"):
        descriptor(own_corpus)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"rank_worldsize": "4,3"}, "'4,3' asks for rank 4 of 3; with 3 nodes the rank goes from 1 to 3"),
        ({"rank_worldsize": "1,7"}, "7 nodes cannot share 6 speakers: there can be 6 nodes at most"),
        ({"partition": "uploader"}, "partition: 'uploader' is unknown; choose speaker, speaker_groups, clips"),
        ({"partition": "speaker_groups"}, "speakers_per_group: None should be a whole number from 1 on"),
        ({"partition": "speaker_groups", "speakers_per_group": 0}, "speakers_per_group: 0 should be a whole number"),
        ({"speakers_per_group": 2}, "speakers_per_group: 2 has no effect with partition: speaker"),
        ({"seed": "7"}, "seed: '7' should be a whole number from 0 on"),
        ({"seed": -1}, "seed: -1 should be a whole number from 0 on"),
        ({"seed": True}, "seed: True should be a whole number from 0 on"),
        ({"silence_share": 0}, "silence_share: 0 should be a number above 0, and 1 at most"),
        ({"silence_share": 1.01}, "silence_share: 1.01 should be a number above 0, and 1 at most"),
        ({"silence_share": -0.1}, "silence_share: -0.1 should be"),
        ({"silence_share": float("nan")}, "silence_share: nan should be"),
        ({"silence_share": float("inf")}, "silence_share: inf should be"),
        ({"silence_share": "0.1"}, "silence_share: '0.1' should be"),
        ({"silence_share": True}, "silence_share: True should be"),
        ({"data_path": None}, "data_path: None should be a folder or the name of a dataset on the hub"),
    ],
)
def test_a_wrong_parameter_raises(corpus, params, sentence):
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor(**{"data_path": str(corpus.root), **params})


def test_importing_and_building_a_shard_needs_no_heavy_library(corpus):
    heavy = ["torch", "torchaudio", "transformers", "datasets", "pandas", "sklearn", "openfl.pipelines"]
    code = (
        "import sys; from shard_descriptors.superb import SuperbShardDescriptor; "
        f"SuperbShardDescriptor({str(corpus.root)!r}).get_dataset('train')[0]; "
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_yaml_of_the_readme_builds_a_shard(corpus):
    readme = (REPOSITORY / "shard_descriptors" / "README.md").read_text()
    config = yaml.safe_load(readme.split("```yaml")[1].split("```")[0])["shard_descriptor"]
    assert config["template"] == f"{SuperbShardDescriptor.__module__}.{SuperbShardDescriptor.__name__}"
    shard = SuperbShardDescriptor(**{**config["params"], "data_path": str(corpus.root)})
    assert (shard.rank, shard.world_size) == (1, 3)


# From the hub


def write_hub_copy(
    corpus, folder: Path, names: tuple[str, ...], columns=("file", "audio", "label"), noise=True
) -> None:
    """SUPERB's `ks` as `hf download` leaves it: README.md and ks/*.parquet with the bytes of each file."""
    import datasets

    (folder / "ks").mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: ks", "  data_files:"]
    features = datasets.Features(
        {
            "file": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16_000),
            "label": datasets.ClassLabel(names=list(names)),
        }
    )
    local = read_folder(corpus.root, seed=0)
    for split, all_clips in local.splits.items():
        clips = [clip for clip in all_clips if noise or clip.label != SILENCE]
        rows = {
            "file": [f"/somebody/cache/{clip.file}" for clip in clips],
            "audio": [{"bytes": (corpus.root / clip.file).read_bytes(), "path": None} for clip in clips],
            "label": [names.index(LABELS[clip.label]) for clip in clips],
        }
        # By pyarrow: `datasets` writes audio with torchcodec. The schema carries its column types, as on the hub.
        table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema).select(columns)
        pyarrow.parquet.write_table(table, folder / "ks" / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: ks/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_copy_of_the_hubs_dataset_gives_the_same_as_the_folder(corpus, tmp_path, hub_cache, frequency_of):
    shuffled = tuple(reversed(LABELS))  # labels go by name, not by number
    write_hub_copy(corpus, tmp_path / "superb", names=shuffled)
    shards = [SuperbShardDescriptor(str(tmp_path / "superb"), f"{rank},3") for rank in (1, 2, 3)]
    for shard, shard_of_folder in zip(shards, all_shards(corpus, 3), strict=True):
        for split in ("train", "validation", "test"):
            dataset, expected = shard.get_dataset(split), shard_of_folder.get_dataset(split)
            assert len(dataset) > 0
            assert (dataset.files, dataset.speakers) == (expected.files, expected.speakers)
            assert dataset.labels.tolist() == expected.labels.tolist()
            for i in np.flatnonzero(dataset.labels != SILENCE):
                assert frequency_of(dataset[i][0]) == corpus.tones[dataset.files[i]]
    assert "an incomplete Speech Commands (68 / 20 / 19 in all" in shards[0].summary


def test_whole_noise_files_from_the_hub_are_cut_at_random_in_train(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    dataset = SuperbShardDescriptor(str(tmp_path / "superb")).get_dataset("train")
    assert starts(dataset, 4) == starts(descriptor(corpus).get_dataset("train"), 4)
    assert len(set(starts(dataset, 4))) == 4


def test_silence_can_be_a_share_of_a_copy_of_the_hubs_dataset_too(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    dataset = SuperbShardDescriptor(str(tmp_path / "superb"), "2,3", silence_share=0.5).get_dataset("train")
    assert silence_of(dataset) == silence_of(
        descriptor(corpus, rank_worldsize="2,3", silence_share=0.5).get_dataset("train")
    )


def test_a_share_of_silence_of_a_corpus_without_noise_files_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS, noise=False)
    folder = str(tmp_path / "superb")
    sentence = "silence_share: 0.1 is cut out of noise files, and .*/superb has none of them$"
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor(folder, silence_share=0.1)
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor.clips_per_client(folder, 3, silence_share=0.1)
    assert len(SuperbShardDescriptor(folder).get_dataset("train")) == 65


def test_a_copy_of_the_hubs_dataset_is_read_again_when_its_tables_change(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    first = read_corpus(tmp_path / "superb", 0)
    assert read_corpus(tmp_path / "superb", 0) is first
    os.utime(tmp_path / "superb" / "ks" / "test-00000-of-00001.parquet", (0, 0))
    assert read_corpus(tmp_path / "superb", 0) is not first


def test_a_hub_dataset_with_other_columns_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS, columns=("audio", "label"))
    with pytest.raises(CorpusError, match="is not SUPERB's ks: split train lacks file"):
        SuperbShardDescriptor(str(tmp_path / "superb"))


def test_a_hub_dataset_with_other_labels_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=(*LABELS, "maybe"))
    with pytest.raises(CorpusError, match="the labels maybe are none of SUPERB's: yes, no"):
        SuperbShardDescriptor(str(tmp_path / "superb"))


def test_a_copy_without_its_readme_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    (tmp_path / "superb" / "README.md").unlink()
    with pytest.raises(
        CorpusError, match=r"superb has ks/\*.parquet, but is no copy of SUPERB's dataset with its README"
    ):
        SuperbShardDescriptor(str(tmp_path / "superb"))


def test_a_hub_name_without_network_and_cache_says_how_to_get_it(tmp_path):
    code = (
        "from shard_descriptors.superb import *\n"
        "try: SuperbShardDescriptor('s3prl/superb')\n"
        "except CorpusError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(
        "data_path: s3prl/superb is no folder here, and the Hugging Face hub did not give a dataset of that name (Conn"
    )
    assert "run `hf download s3prl/superb --repo-type dataset" in run.stdout
    assert run.stdout.rstrip().endswith("or give a Speech Commands folder")
    assert run.stdout.count("\n") == 1


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
