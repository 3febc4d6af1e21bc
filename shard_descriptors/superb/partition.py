"""Speech Commands divided among nodes, and how much each node gets: once per process, for all its shards."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.partition import by_clip, by_speaker, by_speaker_groups
from shard_descriptors.superb.layout import SILENCE, Clip, Corpus

PARTITIONS = ("speaker", "speaker_groups", "clips")


class Division(NamedTuple):
    """The clips of each node, nodes counted from 0. Noise files are dealt out in `train`, and all listed in `noise`."""

    train: tuple[tuple[Clip, ...], ...]
    validation: tuple[tuple[Clip, ...], ...]
    noise: tuple[Clip, ...]


# A process has one division, or a few; each keeps its corpus.
@lru_cache(maxsize=4)
def divide(corpus: Corpus, partition: str, speakers_per_group: int | None, world_size: int, seed: int) -> Division:
    """Give each clip of the train and validation splits a node; the next call gives the same object."""
    train, validation = corpus.splits["train"], corpus.splits["validation"]
    train_nodes, validation_nodes = _assign(train, validation, partition, speakers_per_group, world_size, seed)
    return Division(
        train=_group(train, train_nodes, world_size),
        validation=_group(validation, validation_nodes, world_size),
        noise=tuple(split_silence(train)[1]),
    )


def split_silence(clips: Iterable[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Spoken clips, and those of silence."""
    parts: tuple[list[Clip], list[Clip]] = [], []
    for clip in clips:
        parts[clip.label == SILENCE].append(clip)
    return parts


def cut_silence(noise: Sequence[Clip], seconds: int, seed: int, rank: int) -> list[Clip]:
    """Return seconds of noise files, at places drawn by the seed and the rank.

    They are spread evenly: over the files, whose numbers of seconds differ by one at most, and within each file.
    """
    generator = np.random.default_rng((seed, rank))
    order = generator.permutation(len(noise))  # so that shards with a few seconds do not all take them from one file
    clips = []
    for i in range(seconds):
        turn, file = divmod(i, len(noise))
        of_this_file = -(-(seconds - file) // len(noise))
        clips.append(replace(noise[order[file]], start=(turn + generator.random()) / of_this_file))
    return clips


def count_silence(silence_share: float, spoken: int) -> int:
    """Return how many clips of silence a share of the spoken ones is, rounded up.

    >>> [count_silence(0.07, spoken) for spoken in (100, 101)]
    [7, 8]
    """
    return math.ceil(Fraction(str(silence_share)) * spoken)  # in floating point, 0.07 * 100 is a little more than 7


def check_parameters(
    data_path: str | Path,
    partition: str,
    speakers_per_group: int | None,
    seed: int,
    silence_share: float | None = None,
) -> None:
    """Raise CorpusError with the parameter, its value and what would be right."""
    if not isinstance(data_path, str | Path) or not str(data_path):
        raise CorpusError(f"data_path: {data_path!r} should be a folder or the name of a dataset on the hub")
    if partition not in PARTITIONS:
        raise CorpusError(f"partition: {partition!r} is unknown; choose {', '.join(PARTITIONS)}")
    if not _is_count(seed):
        raise CorpusError(f"seed: {seed!r} should be a whole number from 0 on")
    if partition == "speaker_groups" and not (_is_count(speakers_per_group) and speakers_per_group):
        raise CorpusError(f"speakers_per_group: {speakers_per_group!r} should be a whole number from 1 on")
    if partition != "speaker_groups" and speakers_per_group is not None:
        raise CorpusError(f"speakers_per_group: {speakers_per_group!r} has no effect with partition: {partition}")
    if silence_share is not None and not _is_share(silence_share):
        raise CorpusError(f"silence_share: {silence_share!r} should be a number above 0, and 1 at most")


def check_world_size(world_size: int) -> None:
    """Raise CorpusError unless `world_size` is a whole number from 1 on."""
    if not (_is_count(world_size) and world_size):
        raise CorpusError(f"world_size: {world_size!r} should be a whole number from 1 on")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1  # NaN is not


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _assign(
    train: Sequence[Clip],
    validation: Sequence[Clip],
    partition: str,
    speakers_per_group: int | None,
    world_size: int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Return the node of each clip of the train and validation splits."""
    spoken, noise = split_silence(train)
    noise_nodes = iter(by_clip(len(noise), world_size, seed))

    if partition == "clips":
        spoken_nodes = iter(by_clip(len(spoken), world_size, seed))
        train_nodes = [int(next(noise_nodes if clip.label == SILENCE else spoken_nodes)) for clip in train]
        return train_nodes, by_clip(len(validation), world_size, seed).tolist()

    speakers = [clip.speaker for clip in spoken]
    if speakers_per_group is None:
        node_of = by_speaker(speakers, world_size, seed)
    else:
        node_of = by_speaker_groups(speakers, speakers_per_group, world_size, seed)
    train_nodes = [int(next(noise_nodes)) if clip.label == SILENCE else node_of[clip.speaker] for clip in train]
    # A speaker of both splits stays on one node. The others, fewer by far, are balanced for themselves, or some nodes
    # would have nothing to validate on; nodes beyond their number have nothing.
    unplaced = [clip.speaker for clip in validation if clip.speaker not in node_of]
    node_of |= by_speaker(unplaced, min(world_size, len(set(unplaced))), seed)
    return train_nodes, [node_of[clip.speaker] for clip in validation]


def _group(clips: Iterable[Clip], nodes: Iterable[int], world_size: int) -> tuple[tuple[Clip, ...], ...]:
    groups: list[list[Clip]] = [[] for _ in range(world_size)]
    for clip, node in zip(clips, nodes, strict=True):
        groups[node].append(clip)
    return tuple(map(tuple, groups))
