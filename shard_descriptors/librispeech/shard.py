"""LibriSpeech: one node's shard, as items of a whole utterance and its targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from openfl_audio.text import count_letters
from shard_descriptors.common.audio import read_waveform
from shard_descriptors.common.errors import AudioError, CorpusError
from shard_descriptors.common.partition import parse_rank_worldsize
from shard_descriptors.librispeech.store import (
    REPORT,
    SAMPLE_RATE,
    SPLITS,
    Clip,
    Prepared,
    Targets,
    count_frames,
    read_prepared,
)


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
        """Return the waveform of an item alone. Raises AudioError if the file is broken, or not what was prepared."""
        clip = self._clips[index]
        waveform = read_waveform(self._prepared.audio / clip.file, SAMPLE_RATE, name=clip.file)
        if len(waveform) != clip.num_samples:
            raise AudioError(
                f"{clip.file}: has {len(waveform):,} samples, and had {clip.num_samples:,} when it was prepared"
            )
        return waveform

    def read_targets(self, index: int) -> np.ndarray:
        """Return the targets of an item alone, with no audio decoded."""
        if not self._targets:
            return np.empty(0, dtype=np.int64)
        return self._targets[index].astype(np.int64)


class LibriSpeechShardDescriptor(ShardDescriptor):
    """One node's shard of LibriSpeech; all parameters come from the envoy's YAML.

    The division among clients was made when the folder was prepared. Train and validation clips are the client's own;
    dev (dev-clean) and test (test-clean) are whole, the same on every node, and empty where the corpus lacks them.

    Args:
        data_path: what openfl-audio data prepare librispeech wrote.
        rank_worldsize: "2,8" is client 2 of a folder that was prepared for 8. "1,1" has the clips of all clients.
        targets: which of the folders of openfl-audio data prepare hubert-targets in <data_path>/targets; None: items
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

    @property
    def reads(self) -> list[Path]:
        """Folders that were prepared, and with the audio."""
        return [self.prepared.folder, self.prepared.audio]

    @staticmethod
    def natural_clients(data_path: str | Path) -> int:
        """Return how many clients the folder was prepared for."""
        return read_prepared(data_path).clients

    @staticmethod
    def clips_per_client(data_path: str | Path) -> np.ndarray:
        """Return how many train clips each client has, int64 (clients,): those of rank r at [r - 1]."""
        return _per_client(data_path, [1] * len(read_prepared(data_path).clips)).astype(np.int64)

    @staticmethod
    def hours_per_client(data_path: str | Path) -> np.ndarray:
        """Return how many hours of train clips each client has, float (clients,): those of rank r at [r - 1]."""
        hour = 3600 * SAMPLE_RATE
        return _per_client(data_path, [clip.num_samples for clip in read_prepared(data_path).clips]) / hour

    def get_dataset(self, dataset_type: str) -> LibriSpeechShardDataset:
        """Return the items of "train", "validation", "dev" (dev-clean) or "test" (test-clean)."""
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
        """YAML for the director's shard registry: the corpus, `summary`, what the targets are, and `letters`."""
        description: dict[str, Any] = {"corpus": self.corpus, "summary": self.summary}
        if self._targets is not None:
            without = [split for split in SPLITS if split not in self._targets.splits]
            description["targets"] = self._targets.info | ({"without_targets": without} if without else {})
        if letters := self.letters:
            description["letters"] = letters
        return yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=1_000)

    @property
    def letters(self) -> dict[str, int]:
        """Return in how many transcripts that train or validate each letter is; none where there are no transcripts."""
        return count_letters(text for split in ("train", "validation") for text in self.get_dataset(split).transcripts)

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


def _per_client(data_path: str | Path, amounts: Sequence[int]) -> np.ndarray:
    """Return the sum over each client's train clips of `amounts`, one for each clip of the table."""
    prepared = read_prepared(data_path)
    train = [clip.client if clip.split == "train" else 0 for clip in prepared.clips]
    return np.bincount(train, amounts, prepared.clients + 1)[1:]


def _describe(dataset: LibriSpeechShardDataset) -> str:
    return f"{len(dataset):,} clips ({dataset.num_samples.sum() / (3600 * SAMPLE_RATE):.2f} h)"
