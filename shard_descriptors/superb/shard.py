"""SUPERB keyword spotting on Speech Commands: one node's shard, as items of one second at 16 kHz and a label."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from shard_descriptors.common.audio import read_waveform
from shard_descriptors.common.errors import CorpusError, first_names
from shard_descriptors.common.partition import count_groups, parse_rank_worldsize
from shard_descriptors.superb.layout import (
    LABELS,
    PUBLISHED,
    SILENCE,
    SPLITS,
    TEST_SET,
    Clip,
    Corpus,
    count_files,
    read_corpus,
)
from shard_descriptors.superb.partition import (
    check_parameters,
    check_world_size,
    count_silence,
    cut_silence,
    divide,
    split_silence,
)

SAMPLE_RATE = 16_000
CLIP_SAMPLES = 16_000  # one second


class SuperbShardDataset(ShardDataset):
    """A split of a shard. Audio is decoded when an item is asked for; labels, speakers and files need no audio.

    dataset[i] -> (waveform, label)
        waveform  float32, shape (16000,): one second at 16 kHz, mono
        label     int, position in `speech_commands.LABELS`

    A shorter clip is padded with zeros at its end and a longer one keeps its first second: the usual practice for
    Speech Commands, where nearly all clips have one second.

    Without a `silence_share` the train split holds whole noise files as `_silence_`: each access cuts another second at
    random out of it, so that a sampler may draw the few silence items as often as it likes. The cut is a function of
    (seed, epoch, item, how often the item was read in this epoch). Each worker process of a DataLoader counts for
    itself. With a share, and in the other splits, an item is the same second at every access.
    """

    sample_rate = SAMPLE_RATE  # of the waveforms, in Hz

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

    A process may open hundreds of shards: the corpus is read and divided once for all of them. The header of each file
    is read once, when its split is first used, for `left_out`, or for `summary` and `dataset_description`, with
    which an envoy names all unusable files at its start. When files were added, removed or renamed, or a list was
    edited, shards that are opened later have it so. A recording overwritten in place is not looked at again.

    Args:
        data_path: a Speech Commands folder (v0.01 or v0.02), a dataset on the Hugging Face hub such as `s3prl/superb`,
            or a folder with a copy of that dataset.
        rank_worldsize: "1,3" is the first of three nodes. The default is one node that has everything.
        partition: `speaker` (all clips of a speaker on one node, about the same number of clips on each),
            `speaker_groups` (speakers in groups of `speakers_per_group`, dealt out in turn) or `clips` (clips dealt
            out regardless of the speaker). Noise files have no speaker and are dealt out in turn.
        speakers_per_group: with `speaker_groups` only.
        seed: of the partition, of a test split made here and of the cuts of silence.
        silence_share: None: a noise file is one train clip of one node. Otherwise every node has all noise files, and
            its train split ends with this share of its spoken clips, rounded up, as seconds of silence. They are spread
            over the noise files, at places that depend on seed and rank, and the same in every epoch.

    Attributes:
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
        silence_share: float | None = None,
    ) -> None:
        check_parameters(data_path, partition, speakers_per_group, seed, silence_share)
        self.rank, self.world_size = parse_rank_worldsize(rank_worldsize)
        self._partition = partition
        self._seed = seed
        self._silence_share = silence_share
        self._corpus = read_corpus(data_path, seed)
        self.missing = self._corpus.missing

        division = divide(self._corpus, partition, speakers_per_group, self.world_size, seed)
        train: Sequence[Clip] = division.train[self.rank - 1]
        if silence_share is not None:
            train = [*split_silence(train)[0], *division.noise]
        # Without those left out below; shared with other shards, not copied.
        self._assigned = {
            "train": train,
            "validation": division.validation[self.rank - 1],
            "test": self._corpus.splits["test"],
        }
        self._clips: dict[str, Sequence[Clip]] = {}
        self._check_train(data_path)

    @property
    def reads(self) -> list[Path]:
        """Folders of the corpus: its own, and those beside it with a published test set."""
        root = Path(self._corpus.name)
        return [] if self.needs_network else [root, *root.parent.glob(f"{TEST_SET}*")]

    @property
    def needs_network(self) -> bool:
        """Tell whether the corpus is on the hub."""
        return not Path(self._corpus.name).is_dir()

    @staticmethod
    def natural_clients(
        data_path: str | Path, partition: str = "speaker", speakers_per_group: int | None = None, seed: int = 0
    ) -> int:
        """Return how many clients the corpus has by itself: speakers of the train split, or groups of them.

        It is the largest number of nodes of that partition, with which each node is one speaker or one group. Opens
        no audio. Raises CorpusError as a shard does, and for `clips`, which any number of nodes can share.
        """
        check_parameters(data_path, partition, speakers_per_group, seed)
        if partition == "clips":
            raise CorpusError("partition: clips has no natural clients; choose speaker or speaker_groups")
        speakers = _speakers(read_corpus(data_path, seed).splits["train"])
        return speakers if speakers_per_group is None else count_groups(speakers, speakers_per_group)

    @staticmethod
    def clips_per_client(
        data_path: str | Path,
        world_size: int,
        partition: str = "speaker",
        speakers_per_group: int | None = None,
        seed: int = 0,
        silence_share: float | None = None,
    ) -> np.ndarray:
        """Return the number of train clips of each node, with silence, without opening a shard: rank r is at [r - 1].

        Returns:
            int64, shape (world_size,). Opens no audio, so clips that a shard leaves out as unusable are counted.

        Raises:
            CorpusError: as a shard does; but a node without clips has 0.
        """
        check_parameters(data_path, partition, speakers_per_group, seed, silence_share)
        check_world_size(world_size)
        division = divide(read_corpus(data_path, seed), partition, speakers_per_group, world_size, seed)
        if silence_share is None:
            return np.array([len(clips) for clips in division.train], dtype=np.int64)
        if not division.noise:
            raise _no_noise(silence_share, data_path)
        spoken = [len(split_silence(clips)[0]) for clips in division.train]
        return np.array([clips + count_silence(silence_share, clips) for clips in spoken], dtype=np.int64)

    def get_dataset(self, dataset_type: str) -> SuperbShardDataset:
        """Return the items of "train", "validation" or "test"."""
        if dataset_type not in SPLITS:
            raise CorpusError(f"there is no split {dataset_type!r}; the splits are {', '.join(SPLITS)}")
        return SuperbShardDataset(self._corpus, self._usable(dataset_type), self._seed)

    @property
    def left_out(self) -> dict[str, str]:
        """Files that are no usable audio, with the reason.

        Those of this shard are found by their headers, those that are in no shard by what they are called.
        """
        problems = (self._corpus.problems(clips) for clips in self._assigned.values())
        return dict(self._corpus.unlisted) | {
            file: problem for of_split in problems for file, problem in of_split.items()
        }

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
        if self._silence_share is not None:
            description["silence_share"] = self._silence_share
        for split in SPLITS[:2]:
            labels = Counter(clip.label for clip in self._usable(split))
            description[split] = {LABELS[label]: labels[label] for label in sorted(labels)}
        return yaml.safe_dump(description, sort_keys=False, width=1_000, default_flow_style=None)

    @property
    def summary(self) -> str:
        """One line: what this shard holds and what it had to leave out."""
        train, validation, test = (self._usable(split) for split in SPLITS)
        silence = sum(clip.label == SILENCE for clip in train)
        of_silence = "" if self._silence_share is None else f" ({silence:,} of silence)"
        return (
            f"SUPERB keyword spotting, shard {self.rank} of {self.world_size} by {self._partition}: "
            f"{len(train):,} train clips{of_silence} of {_speakers(train):,} speakers, "
            f"{len(validation):,} validation clips of {_speakers(validation):,}, "
            f"{len(test):,} test clips, of {_completeness(self._corpus)}{self._faults()}"
        )

    def _check_train(self, data_path: str | Path) -> None:
        """Raise if the train split cannot be used. Looks at files only until one is good."""
        needed: Iterable[Clip] = self._assigned["train"]
        if self._silence_share is not None:
            needed, noise = split_silence(needed)
            if not self._any_usable(noise):
                raise _no_noise(self._silence_share, data_path, self._faults())
        if not self._any_usable(needed):
            shard_name = f"shard {self.rank} of {self.world_size}"
            raise CorpusError(f"data_path: {data_path} has no train clip for {shard_name}{self._faults()}")

    def _any_usable(self, clips: Iterable[Clip]) -> bool:
        return any(self._corpus.problem(clip) is None for clip in clips)

    def _usable(self, split: str) -> Sequence[Clip]:
        if split not in self._clips:
            clips = self._assigned[split]
            if self._corpus.problems(clips):
                clips = [clip for clip in clips if self._corpus.problem(clip) is None]
            if split == "train" and self._silence_share is not None:
                spoken, noise = split_silence(clips)
                seconds = count_silence(self._silence_share, len(spoken))
                clips = [*spoken, *cut_silence(noise, seconds, self._seed, self.rank)]
            self._clips[split] = clips
        return self._clips[split]

    def _faults(self) -> str:
        faults = ""
        if left_out := self.left_out:
            reasons = [f"{file} {reason}" for file, reason in left_out.items()]
            faults += f"; left out {count_files(len(reasons))}: {first_names(reasons)}"
        if self.missing:
            faults += f"; its lists name {count_files(len(self.missing))} not there: {first_names(self.missing)}"
        return faults


def _no_noise(silence_share: float, data_path: str | Path, faults: str = "") -> CorpusError:
    return CorpusError(
        f"silence_share: {silence_share} is cut out of noise files, and {data_path} has none of them{faults}"
    )


def _one_second(waveform: np.ndarray, start: float) -> np.ndarray:
    """Pad at the end, or take the second at `start` (0.0 the first, 1.0 the last)."""
    spare = len(waveform) - CLIP_SAMPLES
    if spare <= 0:
        return np.pad(waveform, (0, -spare))
    first = round(start * spare)
    return waveform[first : first + CLIP_SAMPLES].copy()  # not a view that keeps a minute of noise in memory


def _speakers(clips: Iterable[Clip]) -> int:
    return len({clip.speaker for clip in clips if clip.speaker})


def _completeness(corpus: Corpus) -> str:
    if corpus.version is not None:
        return f"the complete Speech Commands {corpus.version} ({corpus.counts} in all)"
    published = ", ".join(f"{version} has {counts}" for version, counts in PUBLISHED.values())
    return f"an incomplete Speech Commands ({corpus.counts} in all; {published})"
