"""SUPERB keyword spotting on Speech Commands: one node's shard, as items of one second at 16 kHz and a label."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from shard_descriptors.audio import audio_problem, read_waveform
from shard_descriptors.errors import CorpusError
from shard_descriptors.partition import by_clip, by_speaker, by_speaker_groups, parse_rank_worldsize
from shard_descriptors.speech_commands import LABELS, PUBLISHED, SILENCE, SPLITS, Clip, Corpus, first_names, read_corpus

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
CLIP_SAMPLES = 16_000  # one second
PARTITIONS = ("speaker", "speaker_groups", "clips")


class SuperbShardDataset(ShardDataset):
    """A split of a shard. Audio is decoded when an item is asked for; labels, speakers and files need no audio.

    dataset[i] -> (waveform, label)
        waveform  float32, shape (16000,): one second at 16 kHz, mono
        label     int, position in `speech_commands.LABELS`

    A shorter clip is padded with zeros at its end and a longer one keeps its first second: the usual practice for
    Speech Commands, where nearly all clips have one second.

    The train split holds whole noise files as `_silence_`: each access cuts another second at random out of it, so that
    a sampler may draw the few silence items as often as it likes. The cut is a function of (seed, epoch, item, how
    often the item was read in this epoch). Each worker process of a DataLoader counts for itself.
    """

    def __init__(self, corpus: Corpus, clips: Sequence[Clip], seed: int) -> None:
        self.labels = np.array([clip.label for clip in clips], dtype=np.int64)  # (items,)
        self.speakers = [clip.speaker for clip in clips]  # "" for silence
        self.files = [clip.file for clip in clips]
        self._corpus = corpus
        self._clips = clips
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: its random cuts are the same whenever it is run, also after a restart."""
        self._epoch = epoch
        self._reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        item = range(len(self))[index]  # counted from the front, or IndexError
        clip = self._clips[item]
        waveform = read_waveform(self._corpus.source(clip), SAMPLE_RATE, name=clip.file)
        start = self._draw_start(item) if clip.start is None else clip.start
        return _one_second(waveform, start), clip.label

    def _draw_start(self, item: int) -> float:
        key = (self._seed, self._epoch, item, self._reads[item])
        self._reads[item] += 1
        return np.random.default_rng(key).random()


class SuperbShardDescriptor(ShardDescriptor):
    """One node's shard of SUPERB keyword spotting; all parameters come from the envoy's YAML.

    The shard is a part of the train and validation splits. The test split is whole, and the same on every node: its
    speakers train nowhere. All nodes give the same `partition` and `seed`, and each its own rank.

    Args:
        data_path: a Speech Commands folder (v0.01 or v0.02), a dataset on the Hugging Face hub such as `s3prl/superb`,
            or a folder with a copy of that dataset.
        rank_worldsize: "1,3" is the first of three nodes. The default is one node that has everything.
        partition: `speaker` (all clips of a speaker on one node, about the same number of clips on each),
            `speaker_groups` (speakers in groups of `speakers_per_group`, dealt out in turn) or `clips` (clips dealt
            out regardless of the speaker). Noise files have no speaker and are dealt out in turn.
        speakers_per_group: with `speaker_groups` only.
        seed: of the partition, of a test split made here and of the random cuts of silence.

    Attributes:
        left_out: files of this shard that are no usable audio, with the reason. They are found by their headers.
        missing: files that the corpus's lists name but that are not there.

    Raises:
        CorpusError: no such corpus, not this corpus, a parameter that is wrong, or a shard without a train clip.
    """

    # By this name an experiment asks for envoys.
    corpus = "superb"

    def __init__(
        self,
        data_path: str | Path,
        rank_worldsize: str = "1,1",
        partition: str = "speaker",
        speakers_per_group: int | None = None,
        seed: int = 0,
    ) -> None:
        _check_parameters(data_path, partition, speakers_per_group, seed)
        self.rank, self.world_size = parse_rank_worldsize(rank_worldsize)
        self._partition = partition
        self._seed = seed
        self._corpus = read_corpus(data_path, seed)
        self.missing = self._corpus.missing
        self.left_out: dict[str, str] = {}

        owner = _assign(self._corpus, partition, speakers_per_group, self.world_size, seed)
        shard = {
            split: [clip for clip, node in zip(clips, owner[split], strict=True) if node == self.rank - 1]
            for split, clips in self._corpus.splits.items()
            if split != "test"
        }
        shard["test"] = self._corpus.splits["test"]
        self._clips = {split: self._readable(clips) for split, clips in shard.items()}
        if not self._clips["train"]:
            shard_name = f"shard {self.rank} of {self.world_size}"
            raise CorpusError(f"data_path: {data_path} has no train clip for {shard_name}{self._faults()}")
        self._report()

    def get_dataset(self, dataset_type: str) -> SuperbShardDataset:
        """The items of "train", "validation" or "test"."""
        if dataset_type not in SPLITS:
            raise CorpusError(f"there is no split {dataset_type!r}; the splits are {', '.join(SPLITS)}")
        return SuperbShardDataset(self._corpus, self._clips[dataset_type], self._seed)

    @property
    def sample_shape(self) -> list[str]:
        """Shape of a waveform; strings, as OpenFL's message wants them."""
        return [str(CLIP_SAMPLES)]

    @property
    def target_shape(self) -> list[str]:
        return ["1"]

    @property
    def dataset_description(self) -> str:
        """YAML for the director's shard registry: the corpus, `summary`, and the clips of each label in each split."""
        description: dict[str, object] = {"corpus": self.corpus, "summary": self.summary}
        for split in SPLITS[:2]:
            labels = Counter(clip.label for clip in self._clips[split])
            description[split] = {LABELS[label]: labels[label] for label in sorted(labels)}
        return yaml.safe_dump(description, sort_keys=False, width=1_000, default_flow_style=None)

    @property
    def summary(self) -> str:
        """One line: what this shard holds and what it had to leave out."""
        train, validation, test = (self._clips[split] for split in SPLITS)
        return (
            f"SUPERB keyword spotting, shard {self.rank} of {self.world_size} by {self._partition}: "
            f"{len(train):,} train clips of {_speakers(train):,} speakers, "
            f"{len(validation):,} validation clips of {_speakers(validation):,}, "
            f"{len(test):,} test clips, of {_completeness(self._corpus)}{self._faults()}"
        )

    def _readable(self, clips: list[Clip]) -> list[Clip]:
        problems: dict[tuple[str, int], str | None] = {}  # a noise file comes many times: look once
        for clip in clips:
            if (clip.file, clip.row) not in problems:
                problems[clip.file, clip.row] = audio_problem(self._corpus.source(clip))
        self.left_out |= {file: problem for (file, _), problem in problems.items() if problem is not None}
        return [clip for clip in clips if problems[clip.file, clip.row] is None]

    def _faults(self) -> str:
        faults = ""
        if self.left_out:
            reasons = [f"{file} {reason}" for file, reason in self.left_out.items()]
            faults += f"; left out {_files(len(reasons))}: {first_names(reasons)}"
        if self.missing:
            faults += f"; its lists name {_files(len(self.missing))} not there: {first_names(self.missing)}"
        return faults

    def _report(self) -> None:
        logger.log(logging.WARNING if self._faults() else logging.INFO, "%s", self.summary)
        trained = {clip.speaker for split in ("train", "validation") for clip in self._corpus.splits[split]}
        shared = sorted(trained.intersection(clip.speaker for clip in self._corpus.splits["test"]) - {""})
        if shared:
            logger.warning("%d test speakers are in train or validation too: %s", len(shared), first_names(shared))


def _check_parameters(data_path: str | Path, partition: str, speakers_per_group: int | None, seed: int) -> None:
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


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _assign(
    corpus: Corpus, partition: str, speakers_per_group: int | None, world_size: int, seed: int
) -> dict[str, list[int]]:
    """The node of each clip of the train and validation splits."""
    train, validation = corpus.splits["train"], corpus.splits["validation"]
    spoken = [clip for clip in train if clip.label != SILENCE]
    noise_nodes = iter(by_clip(len(train) - len(spoken), world_size, seed))

    if partition == "clips":
        spoken_nodes = iter(by_clip(len(spoken), world_size, seed))
        train_nodes = [int(next(noise_nodes if clip.label == SILENCE else spoken_nodes)) for clip in train]
        return {"train": train_nodes, "validation": by_clip(len(validation), world_size, seed).tolist()}

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
    return {"train": train_nodes, "validation": [node_of[clip.speaker] for clip in validation]}


def _one_second(waveform: np.ndarray, start: float) -> np.ndarray:
    """Pad at the end, or take the second at `start` (0.0 the first, 1.0 the last)."""
    spare = len(waveform) - CLIP_SAMPLES
    if spare <= 0:
        return np.pad(waveform, (0, -spare))
    first = round(start * spare)
    return waveform[first : first + CLIP_SAMPLES].copy()  # not a view that keeps a minute of noise in memory


def _speakers(clips: list[Clip]) -> int:
    return len({clip.speaker for clip in clips if clip.speaker})


def _completeness(corpus: Corpus) -> str:
    if corpus.version is not None:
        return f"the complete Speech Commands {corpus.version} ({corpus.counts} in all)"
    published = ", ".join(f"{version} has {counts}" for version, counts in PUBLISHED.values())
    return f"an incomplete Speech Commands ({corpus.counts} in all; {published})"


def _files(count: int) -> str:
    return f"{count:,} file{'s' if count > 1 else ''}"
