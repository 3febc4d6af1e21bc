"""Partitions are complete, disjoint, balanced as promised, and the same whenever and wherever they are computed."""

import doctest
from collections import Counter

import numpy as np
import pytest

from shard_descriptors import partition, speech_commands
from shard_descriptors.errors import CorpusError
from shard_descriptors.partition import by_clip, by_speaker, by_speaker_groups, parse_rank_worldsize

# 40 speakers with 1 to 40 clips: as uneven as real ones
SPEAKERS = [f"s{i:02d}" for i in range(40) for _ in range(i + 1)]


@pytest.mark.parametrize("module", [partition, speech_commands], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("world_size", [1, 2, 7, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_by_speaker_places_every_speaker_once_and_balances_clips(world_size, seed):
    node_of = by_speaker(SPEAKERS, world_size, seed)
    assert sorted(node_of) == sorted(set(SPEAKERS))
    assert set(node_of.values()) == set(range(world_size))
    clips = Counter(node_of[speaker] for speaker in SPEAKERS)
    assert max(clips.values()) - min(clips.values()) <= 40  # the clips of the most prolific speaker


def test_partitions_are_pinned_to_the_seed():
    # Numbers of one run: a change here moves every user's clips to other envoys.
    assert by_speaker("aaabbcdd", 2, seed=0) == {"a": 1, "b": 0, "c": 0, "d": 0}
    assert by_speaker_groups("abcde", 2, 2, seed=0) == {"a": 1, "b": 0, "c": 0, "d": 1, "e": 0}
    assert by_clip(6, 2, seed=0).tolist() == [1, 0, 1, 0, 0, 1]
    assert by_speaker(SPEAKERS, 3, seed=0) == by_speaker(reversed(SPEAKERS), 3, seed=0)
    assert by_speaker(SPEAKERS, 3, seed=0) != by_speaker(SPEAKERS, 3, seed=1)


def test_speaker_groups_have_the_given_size_and_the_last_what_is_left():
    node_of = by_speaker_groups(SPEAKERS, speakers_per_group=6, world_size=7, seed=0)
    assert sorted(node_of) == sorted(set(SPEAKERS))
    assert Counter(node_of.values()) == {0: 6, 1: 6, 2: 6, 3: 6, 4: 6, 5: 6, 6: 4}


def test_speaker_groups_are_dealt_out_in_turn_and_stay_together():
    group_of = by_speaker_groups(SPEAKERS, speakers_per_group=6, world_size=7, seed=0)
    node_of = by_speaker_groups(SPEAKERS, speakers_per_group=6, world_size=3, seed=0)
    assert all(node_of[speaker] == group_of[speaker] % 3 for speaker in node_of)
    assert node_of != by_speaker_groups(SPEAKERS, speakers_per_group=6, world_size=3, seed=1)


def test_by_clip_gives_counts_that_differ_by_one():
    nodes = by_clip(101, world_size=4, seed=0)
    assert sorted(Counter(nodes.tolist()).items()) == [(0, 26), (1, 25), (2, 25), (3, 25)]
    assert not np.array_equal(nodes, np.arange(101) % 4)
    np.testing.assert_array_equal(nodes, by_clip(101, world_size=4, seed=0))
    assert not np.array_equal(nodes, by_clip(101, world_size=4, seed=1))


def test_more_nodes_than_speakers_raises():
    with pytest.raises(CorpusError, match="41 nodes cannot share 40 speakers: there can be 40 nodes at most"):
        by_speaker(SPEAKERS, 41, seed=0)


def test_more_nodes_than_groups_raises():
    with pytest.raises(CorpusError, match=r"8 nodes cannot share 7 groups of 6 \(from 40 speakers\): .* 7 nodes at"):
        by_speaker_groups(SPEAKERS, 6, 8, seed=0)


@pytest.mark.parametrize(("text", "expected"), [("1,1", (1, 1)), ("3,3", (3, 3)), (" 2 , 10 ", (2, 10))])
def test_rank_worldsize_is_read(text, expected):
    assert parse_rank_worldsize(text) == expected


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("4,3", r"rank_worldsize: '4,3' asks for rank 4 of 3; with 3 nodes the rank goes from 1 to 3"),
        ("0,3", r"rank_worldsize: '0,3' asks for rank 0 of 3; with 3 nodes the rank goes from 1 to 3"),
        ("1,0", r"rank_worldsize: '1,0' has no node; the number of nodes is at least 1"),
        ("1", r"rank_worldsize: '1' should be \"rank,number of nodes\""),
        ("1,2,3", r"rank_worldsize: '1,2,3' should be"),
        ("-1,3", r"rank_worldsize: '-1,3' should be"),
        ("1.0,3", r"rank_worldsize: '1.0,3' should be"),
        ([1, 3], r"rank_worldsize: \[1, 3\] should be"),
        (None, r"rank_worldsize: None should be"),
    ],
)
def test_a_wrong_rank_worldsize_raises(value, sentence):
    with pytest.raises(CorpusError, match=sentence):
        parse_rank_worldsize(value)
