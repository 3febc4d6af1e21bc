"""LibriSpeech for self-supervised pretraining: one node's shard, as items of a whole utterance and its targets.

A shard reads the folder that scripts/prepare_librispeech.py wrote; the audio stays where it is:

    librispeech.json                              where the audio is, how it was divided, what was left out and why
    clips.csv                                     one row per utterance, split by split, client by client
    targets/<name>/targets.json                   what k-means was fitted on; written last
    targets/<name>/{train,validation}_<client>.i16, dev.i16, test.i16
                                                  int16: the cluster of each frame, clip after clip as in clips.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from shard_descriptors.audio import read_waveform
from shard_descriptors.errors import AudioError, CorpusError
from shard_descriptors.partition import parse_rank_worldsize
from shard_descriptors.text import read_json, read_rows

SAMPLE_RATE = 16_000
HOP_LENGTH = 320  # samples between frames
FRAME_SAMPLES = 400  # that a frame sees
SPLITS = ("train", "validation", "dev", "test")
GLOBAL_SPLITS = {"dev": "dev-clean", "test": "test-clean"}  # the same on every node

REPORT = "librispeech.json"
TABLE = "clips.csv"
COLUMNS = ("split", "client", "speaker", "file", "num_samples", "duration_s", "transcript")
TARGETS = "targets"
TARGETS_INFO = "targets.json"
TARGET_TYPE = np.dtype("<i2")


def count_frames(num_samples: Any) -> Any:
    """Frames that HuBERT's convolutions make of so many samples, one number or an array of them.

    Kernels (10, 3, 3, 3, 3, 2, 2) with strides (5, 2, 2, 2, 2, 2, 2) see 400 samples every 320 (Hsu et al., "HuBERT",
    2021, arXiv 2106.07447, section II): floor((samples - 400) / 320) + 1, and none of less than 400.

    >>> [count_frames(samples) for samples in (399, 400, 719, 720, 16_000)]
    [0, 1, 1, 2, 49]
    """
    return np.maximum((num_samples - FRAME_SAMPLES) // HOP_LENGTH + 1, 0)


class Clip(NamedTuple):
    """A row of the table.

    Attributes:
        client: from 1; 0 for the global splits.
        file: relative to the audio's folder, `train-clean-100/103/1240/103-1240-0000.flac`.
        transcript: "" where the corpus has none.
    """

    split: str
    client: int
    speaker: str
    file: str
    num_samples: int
    transcript: str = ""

    @property
    def part(self) -> str:
        """The targets of a part are in one file."""
        return f"{self.split}_{self.client}" if self.client else self.split

    @property
    def name(self) -> str:
        return Path(self.file).stem


@dataclass(frozen=True, eq=False)  # equal is the same: all shards of a process share one
class Prepared:
    """A prepared folder. `audio` is LibriSpeech itself."""

    folder: Path
    audio: Path
    clients: int
    partition: str
    clips: tuple[Clip, ...]

    def parts(self, split: str, client: int | None = None) -> dict[str, list[Clip]]:
        """The clips of a split by part: those of one client or, with None, of all; a global split is one part."""
        parts: dict[str, list[Clip]] = {}
        for clip in self.clips:
            if clip.split == split and (client is None or clip.client in (0, client)):
                parts.setdefault(clip.part, []).append(clip)
        return parts


def read_prepared(data_path: str | Path) -> Prepared:
    """Read a prepared folder. It is read once per process, and again when it has changed; no audio is opened."""
    folder = Path(data_path).expanduser()
    if not folder.is_dir():
        raise CorpusError(f"data_path: there is no folder {data_path}")
    if not (folder / REPORT).is_file():
        raise CorpusError(
            f"data_path: {data_path} has no {REPORT}: scripts/prepare_librispeech.py writes it when it is done"
        )
    changed_ns = max((folder / name).stat().st_mtime_ns for name in (REPORT, TABLE))
    return _read_once(folder.resolve(), changed_ns)


class LibriSpeechShardDataset(ShardDataset):
    """A split of a shard. Audio is decoded when an item is asked for; everything else needs no audio.

    dataset[i] -> (waveform, targets)
        waveform  float32, shape (samples,): a whole utterance at 16 kHz, mono
        targets   int64, shape (frames,): the k-means cluster of each frame, frames = count_frames(samples);
                  shape (0,) in a dataset without targets

    Attributes:
        num_samples, num_frames: int64, shape (items,); frames are those of `count_frames`.
        speakers, names, transcripts: of each item; a transcript is "" where the corpus has none.
        targets_info: {"codebook", "clusters", "feature"}, or None without targets.
    """

    sample_rate = SAMPLE_RATE  # of the waveforms, in Hz

    def __init__(self, prepared: Prepared, parts: dict[str, list[Clip]], targets: "Targets | None") -> None:
        self._prepared = prepared
        self._clips = [clip for clips in parts.values() for clip in clips]
        self.num_samples = np.array([clip.num_samples for clip in self._clips], dtype=np.int64)
        self.num_frames = count_frames(self.num_samples)
        self.speakers = [clip.speaker for clip in self._clips]
        self.names = [clip.name for clip in self._clips]
        self.transcripts = [clip.transcript for clip in self._clips]
        self.targets_info = None if targets is None else targets.info
        self._targets = [] if targets is None else [row for part in parts.items() for row in targets.read(*part)]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.read_waveform(index), self.read_targets(index)

    def read_waveform(self, index: int) -> np.ndarray:
        """The waveform of an item alone. Raises AudioError if the file is broken, or not what was prepared."""
        clip = self._clips[index]
        waveform = read_waveform(self._prepared.audio / clip.file, SAMPLE_RATE, name=clip.file)
        if len(waveform) != clip.num_samples:
            raise AudioError(
                f"{clip.file}: has {len(waveform):,} samples, and had {clip.num_samples:,} when it was prepared"
            )
        return waveform

    def read_targets(self, index: int) -> np.ndarray:
        """The targets of an item alone, with no audio decoded."""
        if not self._targets:
            return np.empty(0, dtype=np.int64)
        return self._targets[index].astype(np.int64)


class LibriSpeechShardDescriptor(ShardDescriptor):
    """One node's shard of LibriSpeech; all parameters come from the envoy's YAML.

    The division among clients was made when the folder was prepared. Train and validation clips are the client's own;
    dev (dev-clean) and test (test-clean) are whole, the same on every node, and empty where the corpus lacks them.

    Args:
        data_path: what scripts/prepare_librispeech.py wrote.
        rank_worldsize: "2,8" is client 2 of a folder that was prepared for 8. "1,1" has the clips of all clients.
        targets: which of the folders that scripts/make_hubert_targets.py wrote into <data_path>/targets; None: items
            have no targets. Where every client has a codebook of its own, dev and test have no targets.

    Raises:
        CorpusError: no such folder or targets, or another number of clients than was prepared.
    """

    # By this name an experiment asks for envoys.
    corpus = "librispeech"

    def __init__(self, data_path: str | Path, rank_worldsize: str = "1,1", targets: str | None = None) -> None:
        self.prepared = read_prepared(data_path)
        self.rank, self.world_size = parse_rank_worldsize(rank_worldsize)
        if self.world_size not in (1, self.prepared.clients):
            raise CorpusError(
                f"rank_worldsize: {rank_worldsize!r} is one of {self.world_size} nodes, and {data_path} was prepared "
                f'for {self.prepared.clients}; "1,{self.prepared.clients}" is the first of them and "1,1" is all'
            )
        if not self.prepared.audio.is_dir():
            raise CorpusError(
                f"{self.prepared.audio}, where {data_path} has its audio, is not there; "
                f'write its new place into {REPORT}, as "audio"'
            )
        self._client = self.rank if self.world_size > 1 else None
        self._targets = None if targets is None else Targets(self.prepared, targets)
        self._datasets: dict[str, LibriSpeechShardDataset] = {}

    @staticmethod
    def natural_clients(data_path: str | Path) -> int:
        """How many clients the folder was prepared for."""
        return read_prepared(data_path).clients

    @staticmethod
    def clips_per_client(data_path: str | Path) -> np.ndarray:
        """How many train clips each client has, int64 (clients,): those of rank r at [r - 1]."""
        return _per_client(data_path, [1] * len(read_prepared(data_path).clips)).astype(np.int64)

    @staticmethod
    def hours_per_client(data_path: str | Path) -> np.ndarray:
        """How many hours of train clips each client has, float (clients,): those of rank r at [r - 1]."""
        hour = 3600 * SAMPLE_RATE
        return _per_client(data_path, [clip.num_samples for clip in read_prepared(data_path).clips]) / hour

    def get_dataset(self, dataset_type: str) -> LibriSpeechShardDataset:
        """The items of "train", "validation", "dev" (dev-clean) or "test" (test-clean)."""
        if dataset_type not in SPLITS:
            raise CorpusError(f"there is no split {dataset_type!r}; the splits are {', '.join(SPLITS)}")
        if dataset_type not in self._datasets:
            has_targets = self._targets is not None and dataset_type in self._targets.splits
            targets = self._targets if has_targets else None
            parts = self.prepared.parts(dataset_type, self._client)
            self._datasets[dataset_type] = LibriSpeechShardDataset(self.prepared, parts, targets)
        return self._datasets[dataset_type]

    @property
    def sample_shape(self) -> list[str]:
        """Shape of a waveform, which has its own length each; strings, as OpenFL's message wants them."""
        return ["-1"]

    @property
    def target_shape(self) -> list[str]:
        return ["-1"]

    @property
    def dataset_description(self) -> str:
        """YAML for the director's shard registry: the corpus, `summary`, and what the targets are."""
        description: dict[str, Any] = {"corpus": self.corpus, "summary": self.summary}
        if self._targets is not None:
            without = [split for split in SPLITS if split not in self._targets.splits]
            description["targets"] = self._targets.info | ({"without_targets": without} if without else {})
        return yaml.safe_dump(description, sort_keys=False, width=1_000)

    @property
    def summary(self) -> str:
        """One line: what this shard holds."""
        who = "all clients" if self._client is None else f"client {self.rank}"
        datasets = {split: self.get_dataset(split) for split in SPLITS}
        held = ", ".join(f"{_describe(dataset)} of {split}" for split, dataset in datasets.items())
        speakers = len(set(datasets["train"].speakers))
        return (
            f"LibriSpeech, {who} of {self.prepared.clients} by {self.prepared.partition}: {held}; "
            f"{speakers:,} train speakers"
        )


class Targets:
    """Clusters that scripts/make_hubert_targets.py gave to the frames of a prepared folder.

    Attributes:
        info: {"codebook", "clusters", "feature"}.
        splits: which have targets.
    """

    def __init__(self, prepared: Prepared, name: str) -> None:
        self._folder = prepared.folder / TARGETS / name
        path = self._folder / TARGETS_INFO
        if not path.is_file():
            made = sorted(path.parent.name for path in (prepared.folder / TARGETS).glob(f"*/{TARGETS_INFO}"))
            raise CorpusError(
                f"targets: {prepared.folder} has no complete targets {name!r}, it has {', '.join(made) or 'none'}; "
                f"scripts/make_hubert_targets.py makes them"
            )
        info = read_json(path)
        self.info = {key: info[key] for key in ("codebook", "clusters", "feature")}
        self.splits = tuple(info["splits"])

    def read(self, part: str, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Of each clip of a part its targets, int16 (frames,): views of a file that is mapped into memory."""
        path = self._folder / f"{part}.i16"
        ends = np.cumsum(count_frames(np.array([clip.num_samples for clip in clips])))
        if not path.is_file() or path.stat().st_size != ends[-1] * TARGET_TYPE.itemsize:
            raise CorpusError(
                f"targets: {path} should hold {ends[-1]:,} frames of {len(clips):,} clips; remove {self._folder} and "
                f"make them again"
            )
        return np.split(np.memmap(path, TARGET_TYPE, "r"), ends[:-1])


# A process has one prepared folder, or a few.
@lru_cache(maxsize=4)
def _read_once(folder: Path, changed_ns: int) -> Prepared:
    report = read_json(folder / REPORT)
    path = folder / TABLE
    header, *rows = read_rows(path) or [(1, [])]
    if tuple(header[1]) != COLUMNS:
        raise CorpusError(f"{path}: its first line should be {','.join(COLUMNS)}")
    clips = []
    for number, row in rows:
        try:
            split, client, speaker, file, num_samples, _, transcript = row
            clips.append(Clip(split, int(client), speaker, file, int(num_samples), transcript))
        except ValueError:
            raise CorpusError(f"{path}, line {number}: {row} should be {','.join(COLUMNS)}") from None
    return Prepared(folder, Path(report["audio"]), report["clients"], report["partition"], tuple(clips))


def _per_client(data_path: str | Path, amounts: Sequence[int]) -> np.ndarray:
    """The sum over each client's train clips of `amounts`, one for each clip of the table."""
    prepared = read_prepared(data_path)
    train = [clip.client if clip.split == "train" else 0 for clip in prepared.clips]
    return np.bincount(train, amounts, prepared.clients + 1)[1:]


def _describe(dataset: LibriSpeechShardDataset) -> str:
    return f"{len(dataset):,} clips ({dataset.num_samples.sum() / (3600 * SAMPLE_RATE):.2f} h)"
