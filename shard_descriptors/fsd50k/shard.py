"""FSD50K by uploader: one node's shard, as log-mel patches of one second and the 0/1 labels of their clip.

Its clients are the people who uploaded the clips, as in Green & Plumbley, "Federated Learning With Highly Imbalanced
Audio Data" (arXiv 2105.08550): a few with thousands of clips, and most with one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from openfl_audio.config import find_function
from shard_descriptors.common.errors import CorpusError, first_names
from shard_descriptors.common.partition import by_speaker, parse_rank_worldsize
from shard_descriptors.fsd50k.layout import OFFICIAL, SPLITS
from shard_descriptors.fsd50k.store import N_MELS, PATCH_FRAMES, MelStore, open_store

DIVISIONS = ("official", "uploader")
PUBLISHED = {"train": 36_796, "validation": 4_170, "test": 10_231}  # clips, arXiv 2010.00475
DESCRIBED_UPLOADERS = 20
# A patch float32 (101, 96) to one of the same shape.
Transform = Callable[[np.ndarray], np.ndarray]


class Fsd50kShardDataset(ShardDataset):
    """The patches of some uploaders' clips in a split.

    dataset[i] -> (patch, labels)
        patch   float32, shape (101, 96): one second of log-mel frames (or of power, in a store prepared so)
        labels  float32, shape (classes,): 1 for the classes of its clip

    Args:
        split: "train", "validation" ("val" for short) or "test".
        uploader_min: leave out uploaders with fewer clips than this in the split.
        uploader_name: an uploader, several, or None for all; `set_uploader` changes it.
        subdir: the store's folder.
        division: "official", or "uploader" for a validation split of whole uploaders; see `Fsd50kShardDescriptor`.
        seed: of the division "uploader".
        transforms: what is done to each patch when it is read.

    Attributes:
        clip: which clip each patch belongs to: 0, 0, 0, 1, ...; int64, shape (patches,).
        clip_labels: 0/1, float32, shape (clips, classes).
        num_labels: of each clip, int64, shape (clips,).
        clip_names, uploaders: of each clip.
        classes: their names.
        all_uploaders: those that `set_uploader` can choose, sorted.
    """

    def __init__(
        self,
        split: str = "train",
        uploader_min: int = 0,
        uploader_name: str | Iterable[str] | None = None,
        subdir: str | Path = ".",
        division: str = "official",
        seed: int = 0,
        transforms: Transform | None = None,
    ) -> None:
        split = OFFICIAL.get(split, split)
        if split not in SPLITS:
            raise CorpusError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        _check_parameters(uploader_min, division, seed)
        self._store = open_store(subdir)
        self.transforms = transforms
        self._in_split = assign_splits(self._store, division, seed) == SPLITS.index(split)
        sizes = np.bincount(self._store.uploader_codes[self._in_split], minlength=len(self._store.uploader_names))
        chosen = np.flatnonzero((sizes > 0) & (sizes >= uploader_min))
        self.all_uploaders = [self._store.uploader_names[code] for code in chosen]
        self.classes = list(self._store.classes)
        self.set_uploader(uploader_name)

    def set_uploader(self, uploader_name: str | Iterable[str] | None) -> None:
        """Have the clips of one uploader, of several, or of all (None) that this dataset can choose."""
        store = self._store
        wanted = self.all_uploaders if uploader_name is None else uploader_name
        wanted = {wanted} if isinstance(wanted, str) else set(wanted)
        if unknown := sorted(wanted.difference(self.all_uploaders)):
            raise CorpusError(
                f"uploader_name: {first_names(map(repr, unknown))} has no clips here; "
                f"there are {first_names(map(repr, self.all_uploaders))}"
            )
        is_wanted = np.isin(store.uploader_names, sorted(wanted))
        self._clips = np.flatnonzero(self._in_split & is_wanted[store.uploader_codes])
        self.clip = np.repeat(np.arange(len(self._clips)), store.num_patches[self._clips])
        self._first_patch = np.cumsum(store.num_patches[self._clips]) - store.num_patches[self._clips]
        self.clip_names = [store.clips[i].name for i in self._clips]
        self.uploaders = [store.clips[i].uploader for i in self._clips]
        self.clip_labels = np.zeros((len(self._clips), len(self.classes)), dtype=np.float32)
        for position, i in enumerate(self._clips):
            self.clip_labels[position, list(store.clips[i].labels)] = 1
        self.num_labels = self.clip_labels.sum(axis=1).astype(np.int64)

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        item = range(len(self))[index]  # counted from the front, or IndexError
        return self.patches(np.array([item]))[0], self.clip_labels[self.clip[item]]

    def patches(self, indices: np.ndarray) -> np.ndarray:
        """Return many patches at once, straight from the memory map: float32, shape (len(indices), 101, 96)."""
        clips = self.clip[indices]
        patches = self._store.patches(self._clips[clips], indices - self._first_patch[clips])
        if self.transforms is None or not len(patches):
            return patches
        return np.stack([np.asarray(self.transforms(patch), dtype=np.float32) for patch in patches])


class Fsd50kShardDescriptor(ShardDescriptor):
    """One node's shard of FSD50K; all parameters come from the envoy's YAML.

    The shard is all train and validation clips of the node's uploaders. The test split is whole, and the same on every
    node. Without an uploader, and as rank 1 of 1, a node has everything.

    Uploaders with train clips are divided so that the nodes have about the same number of clips; those with validation
    clips only, or too few train clips for `uploader_min`, are divided for themselves, so that the nodes together
    validate on all clips of the split.

    Args:
        data_path: a store made by openfl-audio data prepare fsd50k.
        uploader: the node is this uploader.
        uploaders: the node has these uploaders.
        rank_worldsize: "1,3" is the first of three nodes. Not together with `uploader` or `uploaders`.
        uploader_min: train only with uploaders that have at least this many train clips; 100 are the "high-volume"
            clients of Green & Plumbley. Validation and test are not touched by it.
        uploader_name: train only with this uploader, or with these, whom the nodes divide: with as many nodes as names,
            node r has the r-th one. Validation and test are not touched by it.
        split: `official` has train and validation as dev.csv does. `uploader` draws whole uploaders out of both for
            a validation split of about the official size, so that no uploader is in both.
        seed: of the partition and of the split by `uploader`.
        transforms: dotted name of a function that each patch of a train clip goes through: an array float32 (101, 96)
            to one of this shape. Validation and test are not touched by it.

    Raises:
        CorpusError: no store, a parameter that is wrong, or a shard without a train clip.
    """

    # By this name an experiment asks for envoys.
    corpus = "fsd50k"

    def __init__(
        self,
        data_path: str | Path,
        uploader: str | None = None,
        uploaders: Sequence[str] | None = None,
        rank_worldsize: str = "1,1",
        uploader_min: int = 0,
        split: str = "official",
        seed: int = 0,
        uploader_name: str | Sequence[str] | None = None,
        transforms: str | None = None,
    ) -> None:
        _check_parameters(uploader_min, split, seed)
        self._transforms = _find_transforms(transforms)
        self.rank, self.world_size = parse_rank_worldsize(rank_worldsize)
        self._store = open_store(data_path)
        self._split, self._seed = split, seed
        if uploader is None and uploaders is None:
            division = divide(self._store, self.world_size, uploader_min, split, seed, _as_names(uploader_name))
            self._uploaders = {
                "train": division.train[self.rank - 1],
                "validation": division.validation[self.rank - 1],
            }
        else:
            if uploader_name is not None:
                raise CorpusError("uploader_name: has no effect where the node is named by uploader or uploaders")
            named = _check_named(uploader, uploaders, self.world_size)
            self._uploaders = self._find_named(named, uploader_min)
        if not self._uploaders["train"]:
            raise CorpusError(
                f"data_path: {data_path} has no train clip for shard {self.rank} of {self.world_size} "
                f"with uploader_min: {uploader_min} and split: {split}"
            )

    @staticmethod
    def natural_clients(
        data_path: str | Path,
        uploader_min: int = 0,
        split: str = "official",
        seed: int = 0,
        uploader_name: str | Sequence[str] | None = None,
    ) -> int:
        """Return how many clients the corpus has: uploaders with at least `uploader_min` train clips (and one).

        Where `uploader_name` names some, they are these.
        """
        _check_parameters(uploader_min, split, seed)
        return len(_trainers(open_store(data_path), uploader_min, split, seed, _as_names(uploader_name)))

    @staticmethod
    def uploader_sizes(
        data_path: str | Path, uploader_min: int = 0, split: str = "official", seed: int = 0
    ) -> dict[str, int]:
        """Return train clips by uploader, the most prolific first: an envoy's YAML can name these."""
        _check_parameters(uploader_min, split, seed)
        return {name: size for name, size in _train_sizes(open_store(data_path), split, seed) if size >= uploader_min}

    @staticmethod
    def clips_per_client(
        data_path: str | Path,
        world_size: int,
        uploader_min: int = 0,
        split: str = "official",
        seed: int = 0,
        uploader_name: str | Sequence[str] | None = None,
    ) -> np.ndarray:
        """Return how many train clips each node has, that of rank r at [r - 1]: int64, shape (world_size,)."""
        _check_parameters(uploader_min, split, seed)
        store = open_store(data_path)
        sizes = dict(_train_sizes(store, split, seed))
        nodes = divide(store, world_size, uploader_min, split, seed, _as_names(uploader_name)).train
        return np.array([sum(sizes[name] for name in names) for names in nodes], dtype=np.int64)

    def get_dataset(self, dataset_type: str) -> Fsd50kShardDataset:
        """Return the patches of "train", "validation" ("val" for short) or "test"."""
        split = OFFICIAL.get(dataset_type, dataset_type)
        return Fsd50kShardDataset(
            split=split,
            uploader_name=self._uploaders.get(split),
            subdir=self._store.folder,
            division=self._split,
            seed=self._seed,
            transforms=self._transforms if split == "train" else None,
        )

    @property
    def left_out(self) -> dict[str, str]:
        """Clips of the corpus that preparation could not use, with the reason."""
        return self._store.left_out

    @property
    def sample_shape(self) -> list[str]:
        """Shape of a patch; strings, as OpenFL's message wants them."""
        return [str(PATCH_FRAMES), str(N_MELS)]

    @property
    def target_shape(self) -> list[str]:
        return [str(len(self._store.classes))]

    @property
    def dataset_description(self) -> str:
        """YAML for the director's shard registry: the corpus, `summary`, and the largest uploaders with their sizes."""
        sizes = Counter(self.get_dataset("train").uploaders).most_common(DESCRIBED_UPLOADERS)
        description = {"corpus": self.corpus, "summary": self.summary, "largest_uploaders": dict(sizes)}
        return yaml.safe_dump(description, sort_keys=False, width=1_000, default_flow_style=None, allow_unicode=True)

    @property
    def summary(self) -> str:
        """One line: what this shard holds and what preparation had to leave out."""
        counts = []
        for split in SPLITS:
            dataset = self.get_dataset(split)
            clips, uploaders = len(dataset.clip_names), len(set(dataset.uploaders))
            counts.append(f"{clips:,} {split} clips ({len(dataset):,} patches) of {uploaders:,} uploaders")
        faults = [f"{name} {reason}" for name, reason in self.left_out.items()]
        left_out = f"; left out {len(faults):,} clips: {first_names(faults)}" if faults else ""
        return (
            f"FSD50K, shard {self.rank} of {self.world_size} by uploader, {self._split} split: {', '.join(counts)}, "
            f"of {_completeness(self._store)}{left_out}"
        )

    def _find_named(self, named: list[str], uploader_min: int) -> dict[str, tuple[str, ...]]:
        sizes = dict(_train_sizes(self._store, self._split, self._seed))
        for name in named:
            if name not in self._store.uploader_names:
                raise CorpusError(
                    f"uploader: {name!r} has no clip in {self._store.folder}; "
                    f"the most prolific are {first_names(map(repr, sizes))}"
                )
            if sizes.get(name, 0) < uploader_min:
                raise CorpusError(
                    f"uploader: {name!r} has {sizes.get(name, 0)} train clips, and uploader_min is {uploader_min}"
                )
        validates = _uploaders_of(self._store, "validation", self._split, self._seed)
        return {
            "train": tuple(name for name in named if name in sizes),
            "validation": tuple(name for name in named if name in validates),
        }


class Division(NamedTuple):
    """The uploaders of each node, nodes counted from 0."""

    train: tuple[tuple[str, ...], ...]
    validation: tuple[tuple[str, ...], ...]


# Hundreds of shards of a process ask for the same division.
@lru_cache(maxsize=8)
def divide(
    store: MelStore, world_size: int, uploader_min: int, split: str, seed: int, names: tuple[str, ...] = ()
) -> Division:
    """Give each uploader a node, as `Fsd50kShardDescriptor` says."""
    sizes = _trainers(store, uploader_min, split, seed, names)
    if len(sizes) < world_size:
        raise CorpusError(
            f"{world_size} nodes cannot share {len(sizes)} uploaders with at least {max(uploader_min, 1)} train clips: "
            f"there can be {len(sizes)} nodes at most"
        )
    node_of = by_speaker((name for name, size in sizes.items() for _ in range(size)), world_size, seed)
    if len(names) == world_size:
        node_of = {name: node for node, name in enumerate(names)}
    validates = _uploaders_of(store, "validation", split, seed)
    unplaced = [name for name in validates if name not in node_of]
    # Balanced by their clips; where they are fewer than nodes, the last nodes get none.
    nodes = min(world_size, len(set(unplaced)))
    validation_node_of = node_of | by_speaker(unplaced, nodes, seed)
    return Division(
        _group(node_of, node_of, world_size), _group(dict.fromkeys(validates), validation_node_of, world_size)
    )


@lru_cache(maxsize=8)
def assign_splits(store: MelStore, division: str, seed: int) -> np.ndarray:
    """Return the split of each clip of a store, as a position in SPLITS; int64, shape (clips,).

    By "uploader", the uploaders of train and validation are gone through in an order drawn by the seed, and each whose
    clips still fit into a validation split of the official size goes there with all of them.
    """
    splits = np.array([SPLITS.index(clip.split) for clip in store.clips])
    if division == "official":
        return splits
    test, validation = SPLITS.index("test"), SPLITS.index("validation")
    wanted = int((splits == validation).sum())
    sizes = np.bincount(store.uploader_codes[splits != test], minlength=len(store.uploader_names))
    drawn = np.zeros(len(sizes), dtype=bool)
    for code in np.random.default_rng(seed).permutation(len(sizes)):
        if 0 < sizes[code] <= wanted:
            drawn[code] = True
            wanted -= sizes[code]
    return np.where(splits == test, test, np.where(drawn[store.uploader_codes], validation, SPLITS.index("train")))


def _uploaders_of(store: MelStore, split: str, division: str, seed: int) -> list[str]:
    """Return the uploader of each clip of a split."""
    codes = store.uploader_codes[assign_splits(store, division, seed) == SPLITS.index(split)]
    return [store.uploader_names[code] for code in codes]


def _train_sizes(store: MelStore, division: str, seed: int) -> list[tuple[str, int]]:
    """Return (uploader, train clips), the most prolific first, and by name where they are equal."""
    sizes = Counter(_uploaders_of(store, "train", division, seed))
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _trainers(store: MelStore, uploader_min: int, split: str, seed: int, names: tuple[str, ...]) -> dict[str, int]:
    """Return train clips of those uploaders that train: of `names`, or of all if there are none."""
    sizes = dict(_train_sizes(store, split, seed))
    for name in names:
        if sizes.get(name, 0) < max(uploader_min, 1):
            raise CorpusError(
                f"uploader_name: {name!r} has {sizes.get(name, 0)} train clips in {store.folder}, and "
                f"{max(uploader_min, 1)} are wanted; the most prolific are {first_names(map(repr, sizes))}"
            )
    return {name: sizes[name] for name in names} or {n: size for n, size in sizes.items() if size >= uploader_min}


def _as_names(uploader_name: str | Sequence[str] | None) -> tuple[str, ...]:
    names = [] if uploader_name is None else [uploader_name] if isinstance(uploader_name, str) else [*uploader_name]
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise CorpusError(f"uploader_name: {uploader_name!r} should be a name, or a list of different names")
    return tuple(names)


def _find_transforms(name: str | None) -> Transform | None:
    try:
        return None if name is None else find_function(name)
    except ValueError as error:
        raise CorpusError(f"transforms: {error}; it should be a dotted name, such as numpy.flipud") from None


def _group(names: Iterable[str], node_of: dict[str, int], world_size: int) -> tuple[tuple[str, ...], ...]:
    groups: list[list[str]] = [[] for _ in range(world_size)]
    for name in names:
        groups[node_of[name]].append(name)
    return tuple(map(tuple, groups))


def _check_parameters(uploader_min: int, division: str, seed: int) -> None:
    for key, value in {"uploader_min": uploader_min, "seed": seed}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise CorpusError(f"{key}: {value!r} should be a whole number from 0 on")
    if division not in DIVISIONS:
        raise CorpusError(f"split: {division!r} is unknown; choose {', '.join(DIVISIONS)}")


def _check_named(uploader: str | None, uploaders: Sequence[str] | None, world_size: int) -> list[str]:
    if uploader is not None and uploaders is not None:
        raise CorpusError(f"uploaders: {uploaders!r} cannot be given together with uploader: {uploader!r}")
    named = [uploader] if uploaders is None else uploaders
    names = [name for name in named if isinstance(name, str)]
    if isinstance(named, str) or not names or len(names) < len(named):
        key, wanted = ("uploader", "a name") if uploaders is None else ("uploaders", "a list of names")
        raise CorpusError(f"{key}: {uploader if uploaders is None else uploaders!r} should be {wanted}")
    if world_size > 1:
        raise CorpusError(f"rank_worldsize: has no effect with named uploaders, and asks for one of {world_size} nodes")
    return names


def _completeness(store: MelStore) -> str:
    counts = Counter(clip.split for clip in store.clips)
    numbers = " / ".join(f"{counts[split]:,}" for split in SPLITS)
    if all(counts[split] == published for split, published in PUBLISHED.items()):
        return f"the complete FSD50K ({numbers} clips)"
    return f"an incomplete FSD50K ({numbers} clips; {' / '.join(f'{n:,}' for n in PUBLISHED.values())} are published)"
