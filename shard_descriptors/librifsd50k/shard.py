"""LibriFSD50K, for speech enhancement: one node's shard, as items of speech, a noise and a second noise, 4 s each."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from shard_descriptors.common.audio import read_waveform
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.partition import by_speaker, parse_rank_worldsize
from shard_descriptors.librifsd50k.store import CHUNK_SAMPLES, FOLDERS, MIN_PAIRS, SAMPLE_RATE, Chunk, Store, read_store

SPLITS = tuple(FOLDERS)
PARTITIONS = ("contiguous", "random")
EVALUATION_SPEECH_SHARE = 0.5  # as published: half of the pairs of validation and test are mixed, half are noise


@dataclass(frozen=True)
class Signals:
    """Form of a dataset's waveforms: their length in seconds, their rate in Hz, and whether they are normalized."""

    clip_seconds: float = CHUNK_SAMPLES / SAMPLE_RATE
    sample_rate: int = SAMPLE_RATE
    normalize_audio: bool = False

    @property
    def num_samples(self) -> int:
        return round(self.clip_seconds * self.sample_rate)


@dataclass(frozen=True)
class Roles:
    """Roles of a node's pairs: rows of the store's table, in their order.

    Attributes:
        mixed: speech with its noise; the items.
        noise: of these only the noise is heard; second noises are drawn from them.
    """

    mixed: tuple[int, ...]
    noise: tuple[int, ...]


class LibriFsd50kShardDataset(ShardDataset):
    """A split of a shard. Audio is decoded when an item is asked for.

    dataset[i] -> (speech, noise, extra_noise)
        each float32, shape (64000,): 4 s at 16 kHz, or what `signals` says, mono, nominally in [-1, 1]

    A mixture is speech + noise, the mixture of mixtures that MixIT separates speech + noise + extra_noise. An extra
    noise comes from the pairs whose speech is not available, and is of another clip than the noise; where there is
    none, it is zeros.

    On the train split each access draws, as a function of (seed, epoch, item): which extra noise; which 4 s of a longer
    recording; with `max_abs_snr_db` two levels; with `p_single_mix` whether one of the mixtures is silent. On
    validation and test the extra noise is fixed, whatever seed and node; longer recordings keep their first 4 s, and
    levels stay.

    Attributes:
        supervised: whether a loss may look at speech and noise apart; without it, at their sum and at extra_noise only.
        sample_rate: of the waveforms, in Hz.
        speakers, files: of each item, with no need of audio; files are those of the speech, relative to the store.
    """

    def __init__(
        self,
        store: Store,
        roles: Roles,
        supervised: bool,
        seed: int | None,
        p_single_mix: float = 0.0,
        max_abs_snr_db: float | None = None,
        signals: Signals | None = None,
    ) -> None:
        """Take the rows of a node; a `seed` of None is validation or test."""
        self._signals = signals or Signals()
        self.sample_rate = self._signals.sample_rate
        self.supervised = supervised
        self.speakers = [store.chunks[row].speaker for row in roles.mixed]
        self.files = [store.chunks[row].speech for row in roles.mixed]
        self._store = store
        self._roles = roles
        self._noise_rows = np.array(roles.noise)
        self._noise_clips = np.array([store.chunks[row].clip for row in roles.noise])
        self._seed = seed
        self._p_single_mix = p_single_mix
        self._max_abs_snr_db = max_abs_snr_db
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: its draws are the same whenever it is run. Validation and test draw the same in all."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._roles.mixed)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = self._roles.mixed[index]
        chunk = self._store.chunks[row]
        # The row, not the position in this shard: a recording keeps its draws on however many nodes.
        generator = np.random.default_rng((0, 0, row) if self._seed is None else (self._seed, self._epoch, row))
        speech, noise = (self._read(file, generator) for file in (chunk.speech, chunk.noise))
        if not self._roles.noise:
            return self._augment(speech, noise, np.zeros_like(noise), generator)
        extra_noise = self._read(self._draw_extra(chunk, generator).noise, generator)
        return self._augment(speech, noise, extra_noise, generator)

    def _draw_extra(self, chunk: Chunk, generator: np.random.Generator) -> Chunk:
        # One noise in two mixtures could not be taken apart. A node that has no other clip has to make do with its own.
        rows = self._noise_rows[self._noise_clips != chunk.clip]
        if not len(rows):
            rows = self._noise_rows
        return self._store.chunks[rows[generator.integers(len(rows))]]

    def _read(self, file: str, generator: np.random.Generator) -> np.ndarray:
        waveform = read_waveform(self._store.root / file, self.sample_rate, name=file)
        if self._signals.normalize_audio:
            waveform = normalize(waveform)
        spare = len(waveform) - self._signals.num_samples
        if spare <= 0:
            return np.pad(waveform, (0, -spare))
        start = 0 if self._seed is None else int(generator.integers(self._last_start(waveform) + 1))
        # not a view that keeps the whole recording in memory
        return waveform[start : start + self._signals.num_samples].copy()

    def _last_start(self, waveform: np.ndarray) -> int:
        """Return where a cut may begin without running into the zeros that WHAM fills up shorter recordings with."""
        recorded = np.flatnonzero(waveform)
        return max(0, int(recorded[-1]) + 1 - self._signals.num_samples) if len(recorded) else 0

    def _augment(
        self, speech: np.ndarray, noise: np.ndarray, extra_noise: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._max_abs_snr_db is not None:
            snrs_db = generator.uniform(-self._max_abs_snr_db, self._max_abs_snr_db, size=2)
            noise, extra_noise = scale_to_snr(speech, noise, snrs_db[0]), scale_to_snr(speech, extra_noise, snrs_db[1])
        if self._roles.noise and generator.random() < self._p_single_mix:
            if generator.random() < 0.5:
                return speech, noise, np.zeros_like(extra_noise)
            return np.zeros_like(speech), np.zeros_like(noise), extra_noise
        return speech, noise, extra_noise


class LibriFsd50kShardDescriptor(ShardDescriptor):
    """One node's shard of LibriFSD50K (or FedWHAM); all parameters come from the envoy's YAML.

    A node has the recordings of some speakers: mixtures of speech and noise, and noises alone. Train and validation
    speakers are divided among the nodes; the test split is whole, and the same on every node. All nodes give the same
    `partition` and `seed`, and each its own rank. A process may open hundreds of shards: the table is read and divided
    once for all of them, and no audio is opened before an item is asked for.

    Args:
        data_path: what openfl-audio data prepare librifsd50k, or fedwham, wrote.
        rank_worldsize: "1,3" is the first of three nodes. The default is one node that has everything.
        partition: `contiguous` (speakers in the order of their numbers, as many on each node, as FedEnhance does) or
            `random` (in an order drawn by the seed, with about as many recordings on each node).
        available_speech_percentage: share of the pairs of speech and noise, above 0 and 1 at most, that are mixed;
            their number is rounded up, and they are spread evenly over the node's pairs. Of the other pairs only the
            noise is heard, as extra noise. Train only; in validation and test it is one half, as published.
        p_single_mix: chance of an item that one of its two mixtures is silent: by equal chances the extra noise, or
            speech and noise. Train only.
        supervised: whether this node knows its clean speech; the dataset tells it to the loss.
        seed: of the random partition and of the draws.
        max_abs_snr_db: scale each noise to an SNR under the speech that is drawn between minus and plus this, in dB.
            None keeps the recorded levels, as published: about -15 to 30 dB. Train only.
        normalize_audio: give every recording mean 0 and variance 1, so that all are as loud.
        clip_seconds: length of an item; longer than the chunks of the store, it ends in zeros.
        sample_rate: of an item, in Hz; recordings are resampled.

    Raises:
        CorpusError: no such store, a parameter that is wrong, or a node for which no extra noise is left and that is
            not supervised, so that nothing could be learned there.
    """

    # By this name an experiment asks for envoys.
    corpus = "librifsd50k"

    def __init__(
        self,
        data_path: str | Path,
        rank_worldsize: str = "1,1",
        partition: str = "contiguous",
        available_speech_percentage: float = 1.0,
        p_single_mix: float = 0.0,
        supervised: bool = True,
        seed: int = 0,
        max_abs_snr_db: float | None = None,
        normalize_audio: bool = False,
        clip_seconds: float = CHUNK_SAMPLES / SAMPLE_RATE,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        _check_parameters(partition, available_speech_percentage, seed)
        if not (_is_number(p_single_mix) and 0 <= p_single_mix <= 1):
            raise CorpusError(f"p_single_mix: {p_single_mix!r} should be a number from 0 to 1")
        if not isinstance(supervised, bool):
            raise CorpusError(f"supervised: {supervised!r} should be true or false")
        if max_abs_snr_db is not None and not (_is_number(max_abs_snr_db) and 0 <= max_abs_snr_db < np.inf):
            raise CorpusError(f"max_abs_snr_db: {max_abs_snr_db!r} should be a number of dB from 0 on")
        if not isinstance(normalize_audio, bool):
            raise CorpusError(f"normalize_audio: {normalize_audio!r} should be true or false")
        if not (_is_number(clip_seconds) and 0 < clip_seconds < np.inf):
            raise CorpusError(f"clip_seconds: {clip_seconds!r} should be a number of seconds above 0")
        if not (_is_count(sample_rate) and 1_000 <= sample_rate <= 192_000):
            raise CorpusError(f"sample_rate: {sample_rate!r} should be a whole number of Hz, such as 16000")
        self._signals = Signals(clip_seconds, sample_rate, normalize_audio)
        self.rank, self.world_size = parse_rank_worldsize(rank_worldsize)
        self._partition = partition
        self._supervised = supervised
        self._seed = seed
        self._p_single_mix = p_single_mix
        self._max_abs_snr_db = max_abs_snr_db
        self._store = read_store(data_path)
        division = divide(self._store, partition, self.world_size, seed)
        share = available_speech_percentage
        self._roles = {
            "train": assign_roles(self._store.chunks, division["train"][self.rank - 1], share),
            "validation": _of_node(_evaluation_roles(self._store, "validation"), division["validation"][self.rank - 1]),
            "test": _evaluation_roles(self._store, "test"),
        }
        if not supervised and not self._roles["train"].noise:
            raise CorpusError(
                f"available_speech_percentage: {share} leaves no extra noise for shard {self.rank} of "
                f"{self.world_size}, which has {_pairs(self._store, self._roles['train'])} pairs of speech and noise "
                f"and is not supervised; choose a smaller share, or fewer nodes"
            )

    @staticmethod
    def natural_clients(data_path: str | Path) -> int:
        """Return how many clients the corpus has by itself: the speakers of the train split."""
        return len({chunk.speaker for chunk in read_store(data_path).chunks if chunk.split == "train"})

    @staticmethod
    def clips_per_client(
        data_path: str | Path,
        world_size: int,
        partition: str = "contiguous",
        available_speech_percentage: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Return how many train items each node has, without opening a shard: that of rank r at [r - 1].

        Returns:
            int64, shape (world_size,).
        """
        _check_parameters(partition, available_speech_percentage, seed)
        if not (_is_count(world_size) and world_size):
            raise CorpusError(f"world_size: {world_size!r} should be a whole number from 1 on")
        store = read_store(data_path)
        nodes = divide(store, partition, world_size, seed)["train"]
        roles = (assign_roles(store.chunks, rows, available_speech_percentage) for rows in nodes)
        return np.array([len(of_node.mixed) for of_node in roles], dtype=np.int64)

    def get_dataset(self, dataset_type: str) -> LibriFsd50kShardDataset:
        """Return the items of "train", "validation" or "test"."""
        if dataset_type not in SPLITS:
            raise CorpusError(f"there is no split {dataset_type!r}; the splits are {', '.join(SPLITS)}")
        roles = self._roles[dataset_type]
        if dataset_type != "train":
            return LibriFsd50kShardDataset(self._store, roles, self._supervised, seed=None, signals=self._signals)
        return LibriFsd50kShardDataset(
            self._store, roles, self._supervised, self._seed, self._p_single_mix, self._max_abs_snr_db, self._signals
        )

    @property
    def sample_shape(self) -> list[str]:
        """Shape of each of the three waveforms; strings, as OpenFL's message wants them."""
        return [str(self._signals.num_samples)]

    @property
    def target_shape(self) -> list[str]:
        return [str(self._signals.num_samples)]

    @property
    def dataset_description(self) -> str:
        """YAML for the director's shard registry."""
        description = {"corpus": self.corpus, "supervised": self._supervised, "summary": self.summary}
        return yaml.safe_dump(description, sort_keys=False, width=1_000)

    @property
    def summary(self) -> str:
        """One line: what this shard holds."""
        train, validation, test = (self._roles[split] for split in SPLITS)
        speakers = len({self._store.chunks[row].speaker for row in train.mixed + train.noise})
        return (
            f"LibriFSD50K, shard {self.rank} of {self.world_size} ({self._partition}), "
            f"{'supervised' if self._supervised else 'not supervised'}: {len(train.mixed):,} train mixtures and "
            f"{len(train.noise):,} noises alone of {speakers:,} speakers, "
            f"{len(validation.mixed):,} validation mixtures, {len(test.mixed):,} test mixtures"
        )


# A process has one division, or a few; each keeps its store.
@lru_cache(maxsize=4)
def divide(store: Store, partition: str, world_size: int, seed: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the rows of each node in the train and validation splits, nodes counted from 0.

    Where there are fewer validation speakers than nodes, the last nodes have none.
    """
    division = {}
    for split in ("train", "validation"):
        rows = [row for row, chunk in enumerate(store.chunks) if chunk.split == split]
        names = [store.chunks[row].speaker for row in rows]
        speakers = len(set(names))
        if split == "train" and world_size > speakers:
            raise CorpusError(
                f"{world_size} nodes cannot share {speakers} speakers: there can be {speakers} nodes at most"
            )
        nodes = min(world_size, speakers)
        node_of = by_speaker(names, nodes, seed) if partition == "random" else contiguous(names, nodes)
        of_node: list[list[int]] = [[] for _ in range(world_size)]
        for row, name in zip(rows, names, strict=True):
            of_node[node_of[name]].append(row)
        division[split] = tuple(map(tuple, of_node))
    return division


def contiguous(speakers: Sequence[str], world_size: int) -> dict[str, int]:
    """Cut speakers, in the order of their numbers, into parts of one size; the first ones have one more.

    >>> contiguous(["1089", "19", "26", "103", "19"], world_size=2)
    {'19': 0, '26': 0, '103': 1, '1089': 1}
    """
    ordered = sorted(set(speakers), key=lambda name: (int(name) if name.isdecimal() else 0, name))
    parts = np.array_split(np.arange(len(ordered)), world_size)
    return {ordered[i]: node for node, part in enumerate(parts) for i in part}


def assign_roles(chunks: Sequence[Chunk], rows: Sequence[int], share: float) -> Roles:
    """Choose which pairs are mixed, and which are heard as noise only: ceil(share * pairs), spread evenly.

    It goes by pairs, not by chunks, so that a recording of noise with one pair is not both in a mixture and alone.
    """
    exact = Fraction(str(share))  # in floating point, 0.07 * 100 is a little more than 7
    mixed: list[int] = []
    noise: list[int] = []
    position, last = -1, None
    for row in rows:
        pair = chunks[row].speaker, chunks[row].pair
        position += pair != last
        last = pair
        is_mixed = -(-(position + 1) * exact.numerator // exact.denominator) > -(
            -position * exact.numerator // exact.denominator
        )
        (mixed if is_mixed else noise).append(row)
    return Roles(tuple(mixed), tuple(noise))


def scale_to_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Scale the noise so that 10 log10(power of speech / power of noise) is `snr_db`; silence stays what it is.

    Shapes: (samples,) each.
    """
    speech_power, noise_power = (np.mean(waveform.astype(np.float64) ** 2) for waveform in (speech, noise))
    if not (speech_power and noise_power):
        return noise
    return (noise * np.sqrt(speech_power / noise_power) * 10 ** (-snr_db / 20)).astype(np.float32)


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Return a waveform (samples,) with mean 0 and variance 1; silence stays what it is."""
    deviation = float(waveform.std(dtype=np.float64))
    return ((waveform - waveform.mean(dtype=np.float64)) / deviation).astype(np.float32) if deviation else waveform


@lru_cache(maxsize=8)
def _evaluation_roles(store: Store, split: str) -> Roles:
    """Return the roles in the whole split: an item and its extra noise are the same on however many nodes."""
    rows = [row for row, chunk in enumerate(store.chunks) if chunk.split == split]
    roles = assign_roles(store.chunks, rows, EVALUATION_SPEECH_SHARE)
    if not roles.noise:
        raise CorpusError(
            f"{store.root}: {split} has {_pairs(store, roles)} pair, and {MIN_PAIRS} are needed: one for a second noise"
        )
    return roles


def _of_node(roles: Roles, rows: Sequence[int]) -> Roles:
    of_node = set(rows)
    return Roles(tuple(row for row in roles.mixed if row in of_node), roles.noise)


def _pairs(store: Store, roles: Roles) -> int:
    return len({(store.chunks[row].speaker, store.chunks[row].pair) for row in roles.mixed + roles.noise})


def _check_parameters(partition: str, available_speech_percentage: float, seed: int) -> None:
    """Raise CorpusError with the parameter, its value and what would be right."""
    if partition not in PARTITIONS:
        raise CorpusError(f"partition: {partition!r} is unknown; choose {' or '.join(PARTITIONS)}")
    if not (_is_number(available_speech_percentage) and 0 < available_speech_percentage <= 1):
        raise CorpusError(
            f"available_speech_percentage: {available_speech_percentage!r} should be a share above 0, and 1 at most"
        )
    if not _is_count(seed):
        raise CorpusError(f"seed: {seed!r} should be a whole number from 0 on")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
