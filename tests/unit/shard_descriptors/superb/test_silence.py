"""The silence of the SUPERB shard descriptor: one noise file an item, or a share of the clips."""

from collections import Counter

import numpy as np
import pytest
import yaml

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.superb.layout import SILENCE
from tests.unit.shard_descriptors.superb_shards import all_shards, descriptor, silence_of, starts

# One noise file an item


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
