"""Utterances of a shard with their transcripts, in batches of similar lengths."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.node.shard_data import ShardData
from workspaces.speech_recognition.letters import encode, normalize

logger = logging.getLogger(__name__)

# Clips are sorted by lengths that are off by up to this share, so that a clip meets others in every epoch.
LENGTH_JITTER = 0.1


@dataclass(frozen=True)
class Batch:
    """Clips, padded with zeros.

        {
            "waveforms": float32 (batch, samples)
            "lengths": int64 (batch,)              in samples
            "targets": int64 (letters of all,)     classes of the letters, one clip after the other
            "target_lengths": int64 (batch,)
            "texts": (batch,)                      what the targets spell
            "names": (batch,)                      of the utterances
        }

    All stay on the CPU but the waveforms.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    texts: list[str]
    names: list[str]


class Clips:
    """The clips of a split that have a transcript; how many have none is logged.

    Attributes:
        texts: normalized transcripts.
        items: which clips of the shard they are of, int64 (clips,)
        num_words: in all.
    """

    def __init__(self, shard_dataset: ShardDataset) -> None:
        self.shard_dataset = shard_dataset
        texts = [normalize(transcript) for transcript in shard_dataset.transcripts]
        self.items = np.array([item for item, text in enumerate(texts) if text], dtype=np.int64)
        self.texts = [texts[item] for item in self.items]
        self.num_words = sum(len(text.split()) for text in self.texts)
        if len(self.items) < len(texts):
            logger.warning("%d of %d clips have no transcript and are left out", len(texts) - len(self), len(texts))

    def __len__(self) -> int:
        return len(self.items)

    def train_batches(self, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Yield every clip once, in random order."""
        lengths = self.shard_dataset.num_samples[self.items]
        order = np.argsort(lengths * generator.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, size=len(self)))
        starts = generator.permutation(np.arange(0, len(self), batch_size))
        yield from (self._read(order[start : start + batch_size]) for start in starts)

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        order = np.argsort(self.shard_dataset.num_samples[self.items], kind="stable")
        yield from (self._read(order[start : start + batch_size]) for start in range(0, len(self), batch_size))

    def _read(self, clips: Sequence[int] | np.ndarray) -> Batch:
        items = self.items[clips]
        waveforms = [torch.from_numpy(self.shard_dataset.read_waveform(int(item))) for item in items]
        texts = [self.texts[clip] for clip in clips]
        return Batch(
            torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            torch.tensor([len(waveform) for waveform in waveforms]),
            torch.tensor(encode("".join(texts))),
            torch.tensor([len(text) for text in texts]),
            texts,
            [self.shard_dataset.names[item] for item in items],
        )


class SpeechData(ShardData):
    """Gives the tasks their clips: those of the node's shard.

    The size of a validation is in words: the mean over nodes of word error rates is then that over the words of all.
    """

    units: ClassVar[dict[str, str]] = {"train": "clips", "validate": "words"}

    def make_train(self, dataset: ShardDataset) -> Clips:
        return Clips(dataset)

    def get_valid_data_size(self) -> int:
        return self._validation.num_words
