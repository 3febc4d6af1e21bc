"""Partitions: speakers or clips -> nodes, as pure functions of the names, the number of nodes and a seed.

Nodes are counted from 0 here; `rank_worldsize` counts them from 1, as OpenFL's tutorials do. A node finds its own shard
without talking to the others: every node computes the same assignment, so all must use the same seed. "Speaker" is
the person who recorded a clip; for FSD50K that is the uploader.
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from shard_descriptors.common.errors import CorpusError


def parse_rank_worldsize(rank_worldsize: str) -> tuple[int, int]:
    """Read "rank,number of nodes"; the rank goes from 1 to the number of nodes.

    >>> parse_rank_worldsize("1,3")
    (1, 3)
    """
    # str(): a YAML list or number gets the same sentence as a wrong string
    match = re.fullmatch(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*", str(rank_worldsize))
    if match is None:
        raise CorpusError(
            f'rank_worldsize: {rank_worldsize!r} should be "rank,number of nodes"; "1,3" is the first of three nodes'
        )
    rank, world_size = int(match[1]), int(match[2])
    if world_size < 1:
        raise CorpusError(f"rank_worldsize: {rank_worldsize!r} has no node; the number of nodes is at least 1")
    if not 1 <= rank <= world_size:
        raise CorpusError(
            f"rank_worldsize: {rank_worldsize!r} asks for rank {rank} of {world_size}; "
            f"with {world_size} nodes the rank goes from 1 to {world_size}"
        )
    return rank, world_size


def by_speaker(speakers: Iterable[str], world_size: int, seed: int) -> dict[str, int]:
    """Assign every speaker to one node, with about the same number of clips on each node.

    In an order drawn by the seed, each speaker goes to the node with the fewest clips so far. So no two nodes differ
    by more clips than the most prolific speaker has, and no node is left without a speaker.

    Args:
        speakers: the speaker of each clip: a name comes once per clip.
        world_size: number of nodes.
        seed: of the order.

    Returns:
        The node of each speaker, 0 to world_size - 1.
    """
    clips_of = Counter(speakers)
    _check_enough(len(clips_of), "speakers", world_size)
    nodes = [(0, node) for node in range(world_size)]  # a heap of (clips so far, node)
    assignment = {}
    for speaker in _shuffled(clips_of, seed):
        clips, node = heapq.heappop(nodes)
        assignment[speaker] = node
        heapq.heappush(nodes, (clips + clips_of[speaker], node))
    return assignment


def by_speaker_groups(speakers: Iterable[str], speakers_per_group: int, world_size: int, seed: int) -> dict[str, int]:
    """Cut the speakers, in an order drawn by the seed, into groups of one size and deal the groups out in turn.

    The last group takes what is left over as well: 8 speakers in groups of 3 are groups of 3 and 5. With as many nodes
    as groups, each node is one group; on fewer nodes the groups go to nodes 0, 1, ..., 0, 1, ...

    >>> assignment = by_speaker_groups("abcdefgh", speakers_per_group=3, world_size=2, seed=0)
    >>> sorted(assignment.values())
    [0, 0, 0, 1, 1, 1, 1, 1]
    """
    names = _shuffled(set(speakers), seed)
    groups = count_groups(len(names), speakers_per_group)
    _check_enough(groups, f"groups of {speakers_per_group} (from {len(names)} speakers)", world_size)
    return {
        speaker: min(position // speakers_per_group, groups - 1) % world_size for position, speaker in enumerate(names)
    }


def count_groups(speakers: int, speakers_per_group: int) -> int:
    """Return how many groups `by_speaker_groups` makes; fewer speakers than one group has are one group.

    >>> [count_groups(speakers, speakers_per_group=5) for speakers in (2112, 5, 4)]
    [422, 1, 1]
    """
    return speakers // speakers_per_group or min(speakers, 1)


def by_clip(clips: int, world_size: int, seed: int) -> np.ndarray:
    """Assign clips to nodes regardless of their speaker; the nodes' counts differ by one at most.

    Returns:
        the node of each clip, shape (clips,). With fewer clips than nodes the last nodes get none.
    """
    nodes = np.arange(clips) % world_size
    return np.random.default_rng(seed).permutation(nodes)


def split_by_group(
    groups: Sequence[str], classes: Sequence[Sequence[str]], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Give each clip a split, so that no group is in two splits and each split has its share of every class.

    Groups are placed one by one, large ones first and those of about one size in an order drawn by the seed. Each goes
    where it brings the counts of clips and of classes nearest to the shares (by chi-square). A few groups with classes
    of their own may miss the shares by far. No split is without a group unless there are fewer groups than splits.

    Args:
        groups: the group of each clip.
        classes: the classes of each clip, which may have none.
        shares: of the splits besides train, such as {"validation": 0.15, "test": 0.15}; one of 0 gets no clip.
        seed: of the order.

    Returns:
        the split of each clip: "train", or one of `shares`.
    """
    wanted = {"train": 1 - sum(shares.values())} | {split: share for split, share in shares.items() if share}
    counts: dict[str, Counter[str]] = {}
    for group, of_clip in zip(groups, classes, strict=True):
        # Clips count as a class of their own, so that splits have their share of them, whatever their classes.
        counts.setdefault(group, Counter()).update(["", *(f"class {name}" for name in of_clip)])
    total = sum(counts.values(), Counter())
    placed: dict[str, Counter[str]] = {split: Counter() for split in wanted}

    def cost(split: str, group: str) -> float:
        """Return by how much the group moves the split away from its share; below 0 it moves it nearer."""
        missing = {name: wanted[split] * total[name] - placed[split][name] for name in counts[group]}
        return sum(
            number * (number - 2 * missing[name]) / (wanted[split] * total[name])
            for name, number in counts[group].items()
        )

    split_of: dict[str, str] = {}
    # Groups whose sizes have the same number of binary digits are of about one size.
    for group in sorted(_shuffled(counts, seed), key=lambda group: -counts[group][""].bit_length()):
        empty = [split for split in wanted if not placed[split]]
        open_splits = empty if len(counts) - len(split_of) <= len(empty) else wanted
        split_of[group] = min(open_splits, key=lambda split: cost(split, group))
        placed[split_of[group]].update(counts[group])
    return [split_of[group] for group in groups]


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    ordered = sorted(names)  # so that the outcome does not depend on the order on disk
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def _check_enough(parts: int, what: str, world_size: int) -> None:
    if parts < world_size:
        raise CorpusError(f"{world_size} nodes cannot share {parts} {what}: there can be {parts} nodes at most")
