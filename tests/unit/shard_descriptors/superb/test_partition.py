"""Cuts of silence: how many, where, and pinned to the seed; the rest is tested through the shard descriptor."""

from collections import Counter

import pytest

from shard_descriptors.superb.layout import SILENCE, Clip, Corpus
from shard_descriptors.superb.partition import count_silence, cut_silence, divide

NOISE = [Clip(f"noise_{k}.wav", SILENCE, start=None) for k in range(3)]


@pytest.mark.parametrize(
    ("share", "spoken", "seconds"),
    [
        (0.1, 100, 10),
        (0.1, 101, 11),
        (0.1, 1, 1),
        (0.1, 0, 0),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (1, 5, 5),
        (1e-9, 5, 1),
    ],
)
def test_the_share_is_taken_as_written_and_rounded_up(share, spoken, seconds):
    assert count_silence(share, spoken) == seconds


def test_cuts_are_pinned_to_seed_and_rank():
    # Numbers of one run: a change here makes what was computed from the cuts, and kept, stale.
    cuts = cut_silence(NOISE, 4, seed=0, rank=1)
    assert [clip.file for clip in cuts] == ["noise_2.wav", "noise_0.wav", "noise_1.wav", "noise_2.wav"]
    assert [clip.start for clip in cuts] == pytest.approx([0.278569, 0.800908, 0.956514, 0.529308], abs=1e-6)


def test_shards_with_one_second_do_not_all_take_it_from_one_file():
    files = Counter(cut_silence(NOISE, 1, seed=0, rank=rank)[0].file for rank in range(1, 301))
    assert sorted(files) == [clip.file for clip in NOISE]
    assert min(files.values()) > 60  # 100 expected, standard deviation 8


def test_a_corpus_is_divided_once():
    train = [Clip(f"yes/{speaker}_nohash_0.wav", 0, speaker) for speaker in "abcdef"]
    corpus = Corpus({"train": (*train, *NOISE), "validation": (), "test": ()}, version=None)
    division = divide(corpus, "speaker", None, 3, 0)
    assert divide(corpus, "speaker", None, 3, 0) is division
    assert divide(corpus, "speaker", None, 3, 1) is not division
    assert sorted(clip.file for clips in division.train for clip in clips) == sorted(
        clip.file for clip in train + NOISE
    )
    assert division.noise == tuple(NOISE)
