"""Partitions are complete, disjoint, balanced as promised, and the same whenever and wherever they are computed."""

import doctest
from collections import Counter

import numpy as np
import pytest

from shard_descriptors.common import errors, partition
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.partition import (
    by_clip,
    by_speaker,
    by_speaker_groups,
    count_groups,
    parse_rank_worldsize,
)
from shard_descriptors.superb import partition as division

# 40 speakers with 1 to 40 clips: as uneven as real ones
SPEAKERS = [f"s{i:02d}" for i in range(40) for _ in range(i + 1)]


@pytest.mark.parametrize("module", [partition, errors, division], ids=lambda module: module.__name__)
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
    assert by_speaker_groups("abcde", 2, 2, seed=0) == {"a": 1, "b": 1, "c": 0, "d": 1, "e": 0}
    assert by_clip(6, 2, seed=0).tolist() == [1, 0, 1, 0, 0, 1]
    assert by_speaker(SPEAKERS, 3, seed=0) == by_speaker(reversed(SPEAKERS), 3, seed=0)
    assert by_speaker(SPEAKERS, 3, seed=0) != by_speaker(SPEAKERS, 3, seed=1)


def test_with_as_many_nodes_as_speakers_each_has_one():
    node_of = by_speaker(SPEAKERS, 40, seed=0)
    assert sorted(node_of.values()) == list(range(40))


@pytest.mark.parametrize(
    ("speakers", "sizes"),
    [(40, [6, 6, 6, 6, 6, 10]), (42, [6] * 7), (6, [6]), (7, [7]), (12, [6, 6]), (5, [5]), (1, [1])],
)
def test_speaker_groups_have_the_given_size_and_the_last_what_is_left_as_well(speakers, sizes):
    names = [f"s{i:02d}" for i in range(speakers)]
    node_of = by_speaker_groups(names, speakers_per_group=6, world_size=len(sizes), seed=0)
    assert sorted(node_of) == names
    assert [Counter(node_of.values())[node] for node in range(len(sizes))] == sizes
    assert count_groups(speakers, speakers_per_group=6) == len(sizes)


def test_the_train_speakers_of_speech_commands_v002_are_422_groups_of_five():
    node_of = by_speaker_groups((f"s{i}" for i in range(2_112)), speakers_per_group=5, world_size=422, seed=0)
    assert Counter(Counter(node_of.values()).values()) == {5: 421, 7: 1}


def test_speaker_groups_are_dealt_out_in_turn_and_stay_together():
    group_of = by_speaker_groups(SPEAKERS, speakers_per_group=6, world_size=6, seed=0)
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
    with pytest.raises(CorpusError, match=r"7 nodes cannot share 6 groups of 6 \(from 40 speakers\): .* 6 nodes at"):
        by_speaker_groups(SPEAKERS, 6, 7, seed=0)
    with pytest.raises(CorpusError, match=r"1 nodes cannot share 0 groups of 6 \(from 0 speakers\)"):
        by_speaker_groups([], 6, 1, seed=0)


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
