"""Utterances of a shard with their transcripts, in batches of similar lengths."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.errors import SettingsError
from openfl_audio.node.shard_data import ShardData
from workspaces.speech_recognition.letters import LETTERS, comparable

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
# Clips are sorted by lengths that are off by up to this share, so that a clip meets others in every epoch.
LENGTH_JITTER = 0.1


@dataclass(frozen=True)
class Batch:
    """Clips, padded with zeros.

        {
            "waveforms": float32 (batch, samples)
            "lengths": int64 (batch,)        in samples
            "texts": (batch,)                what is said
            "names": (batch,)                of the utterances
        }

    All stay on the CPU but the waveforms.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    texts: list[str]
    names: list[str]


@dataclass(frozen=True)
class BatchSize:
    """Bounds on a batch: `clips`, and `seconds` of audio with the padding, whichever is reached first."""

    clips: int
    seconds: float | None = None

    def cut(self, order: Sequence[int] | np.ndarray, num_samples: np.ndarray) -> list[list[int]]:
        """Cut clips, in an order by length, into batches. A clip that is longer than the bound is a batch alone.

        >>> BatchSize(2, seconds=1.0).cut([0, 1, 2, 3], np.array([4000, 4000, 5000, 16000]))
        [[0, 1], [2], [3]]
        """
        batches: list[list[int]] = []
        longest = 0
        for clip in map(int, order):
            longest = max(longest, int(num_samples[clip]))
            filled = batches and len(batches[-1]) < self.clips
            fits = self.seconds is None or (batches and (len(batches[-1]) + 1) * longest <= self.seconds * SAMPLE_RATE)
            if filled and fits:
                batches[-1].append(clip)
            else:
                batches.append([clip])
                longest = int(num_samples[clip])
        return batches


class Clips:
    """The clips of a split that have a transcript; how many have none is logged.

    A split is one of LibriSpeech, or of recordings with texts, of a table or a dataset of the hub.

    Attributes:
        texts: transcripts as they are scored, which are those that a model of letters learns.
        transcripts: as the corpus writes them.
        items: which clips of the shard they are of, int64 (clips,)
        speakers: of each clip, "" where it is unknown.
        num_words: of `texts`, in all.
    """

    def __init__(self, shard_dataset: ShardDataset, normalizer: str = "letters", letters: str = LETTERS) -> None:
        self.shard_dataset = shard_dataset
        transcripts = _transcripts(shard_dataset)
        texts = [comparable(transcript, normalizer, letters) for transcript in transcripts]
        self.items = np.array([item for item, text in enumerate(texts) if text], dtype=np.int64)
        self.texts = [texts[item] for item in self.items]
        self.transcripts = [transcripts[item] for item in self.items]
        self.num_words = sum(len(text.split()) for text in self.texts)
        if len(self.items) < len(texts):
            logger.warning("%d of %d clips have no transcript and are left out", len(texts) - len(self), len(texts))
        dataset: Any = shard_dataset
        speakers = getattr(dataset, "speakers", None) or getattr(dataset, "groups", None) or [""] * len(texts)
        self.speakers = [str(speakers[item]) for item in self.items]
        self.num_samples: np.ndarray = np.asarray(dataset.num_samples)[self.items]

    def __len__(self) -> int:
        return len(self.items)

    def cut_epoch(self, size: BatchSize, generator: np.random.Generator) -> list[list[int]]:
        """Return the batches of an epoch, positions of clips: every clip once, in random order."""
        order = np.argsort(self.num_samples * generator.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, size=len(self)))
        batches = size.cut(order, self.num_samples)
        return [batches[number] for number in generator.permutation(len(batches))]

    def validation_batches(self, size: BatchSize) -> Iterator[tuple[list[int], Batch]]:
        """Yield all clips, the shortest first: their positions, and themselves."""
        order = np.argsort(self.num_samples, kind="stable")
        yield from ((clips, self.read(clips)) for clips in size.cut(order, self.num_samples))

    def read(self, clips: Sequence[int]) -> Batch:
        """Return a batch of clips by their positions."""
        items = self.items[list(clips)]
        dataset: Any = self.shard_dataset
        read = dataset.read_waveform if hasattr(dataset, "read_waveform") else lambda item: dataset[item][0]
        waveforms = [torch.from_numpy(read(int(item))) for item in items]
        names = getattr(dataset, "names", None) or dataset.files
        return Batch(
            torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            torch.tensor([len(waveform) for waveform in waveforms]),
            [self.transcripts[clip] for clip in clips],
            [names[item] for item in items],
        )


def _transcripts(shard_dataset: Any) -> Sequence[str]:
    if hasattr(shard_dataset, "transcripts"):
        return shard_dataset.transcripts
    if shard_dataset.kind != "text":
        raise SettingsError(
            f"the recordings have a {shard_dataset.kind} each: name their column of texts in the settings of the "
            "envoy, as columns: {text: ...}"
        )
    if shard_dataset.sample_rate != SAMPLE_RATE:
        raise SettingsError(f"the shard has {shard_dataset.sample_rate:,} Hz: set sample_rate: {SAMPLE_RATE}")
    return shard_dataset.targets


class SpeechData(ShardData):
    """Gives the tasks their clips: those of the node's shard.

    The size of a validation is in words: the mean over nodes of word error rates is then that over the words of all.
    """

    units: ClassVar[dict[str, str]] = {"train": "clips", "validate": "words"}

    def __init__(self, normalizer: str = "letters", letters: str = LETTERS) -> None:
        super().__init__()
        self._normalizer, self._letters = normalizer, letters

    def make_train(self, dataset: ShardDataset) -> Clips:
        return Clips(dataset, self._normalizer, self._letters)

    def get_valid_data_size(self) -> int:
        return self._validation.num_words
