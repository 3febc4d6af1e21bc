"""Recordings of a shard as a model wants them: of one length, varied in training, in batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset
from torchaudio import functional

from openfl_audio.errors import SettingsError
from openfl_audio.node.shard_data import ShardData
from workspaces.audio_classification.model import frequency_axis, make_inputs
from workspaces.audio_classification.targets import Targets

# Waveforms of a split are decoded once where they take less.
MAX_KEPT_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Augmentation:
    """Changes of a clip from one epoch to the next; all that is drawn depends on seed, round, client, epoch and clip.

    Attributes:
        shift_s: shifted in time by up to so many seconds either way, around the corner.
        gain_db: made louder or softer by up to so many dB.
        noise_db: white noise so many dB below the clip's own level, up to 20 dB less; None adds none.
        speeds: played at one of these speeds, which changes the pitch as well (Ko et al., Interspeech 2015, have 0.9, 1
            and 1.1); none leaves it.
        time_mask, frequency_mask: of a spectrogram a stripe of up to that share of its frames or bands is replaced by
            its mean (SpecAugment, Park et al., arXiv 1904.08779, without time warping).
    """

    shift_s: float = 0.0
    gain_db: float = 0.0
    noise_db: float | None = None
    speeds: tuple[float, ...] = ()
    time_mask: float = 0.0
    frequency_mask: float = 0.0

    def draw_speed(self, generator: np.random.Generator) -> float:
        """Return a speed; 1 is that of the recording."""
        return float(generator.choice(self.speeds)) if self.speeds else 1.0

    def apply(self, waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Return the waveform (samples,) varied by what `generator` draws."""
        shift = round(generator.uniform(-self.shift_s, self.shift_s) * sample_rate)
        varied = torch.from_numpy(np.roll(waveform, shift))
        if gain_db := generator.uniform(-self.gain_db, self.gain_db):
            varied = functional.gain(varied, gain_db)
        if self.noise_db is not None and varied.any():
            noise = torch.from_numpy(generator.standard_normal(len(varied), dtype=np.float32))
            snr_db = torch.tensor(self.noise_db + generator.uniform(0, 20), dtype=torch.float32)
            varied = functional.add_noise(varied, noise, snr_db)
        return varied.numpy()

    def mask(self, spectrogram: np.ndarray, frequency_axis: int, generator: np.random.Generator) -> np.ndarray:
        """Return a spectrogram with its stripes: (bands, frames), or (frames, bands) with a `frequency_axis` of 1."""
        masked = torch.from_numpy(spectrogram)[None]
        with torch.random.fork_rng(devices=[]):  # torchaudio draws from torch's own
            torch.manual_seed(int(generator.integers(2**31)))
            for share, axis in ((self.frequency_mask, frequency_axis), (self.time_mask, 1 - frequency_axis)):
                longest = int(share * spectrogram.shape[axis])
                if longest:
                    masked = functional.mask_along_axis(masked, longest, float(spectrogram.mean()), 1 + axis)
        return masked[0].numpy()


def change_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """Return a waveform (samples,) played at `speed`, in steps of 0.01: (about samples / speed,)."""
    if speed == 1:
        return waveform
    return functional.resample(torch.from_numpy(waveform), round(100 * speed), 100).numpy()


class Clips:
    """A split of a shard. Clips are of one length, so a clip has the same scores alone as among others.

    Shorter recordings end in zeros; of longer ones training takes a part at random, and validation the beginning.

    Attributes:
        items: positions in the shard of the clips that are not left out by the experiment's mapping.
        encoded: what the loss takes for each: int64 (clips,), float32 (clips, classes) or float32 (clips,).
        groups: the speaker, patient or device of each; "" where it is unknown.
    """

    def __init__(
        self,
        shard_dataset: ShardDataset,
        targets: Targets,
        clip_s: float,
        extractor: Any = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        encoded = targets.encode_all(shard_dataset.targets)
        self.targets = targets
        self.items = [i for i, target in enumerate(encoded) if target is not None]
        groups = getattr(shard_dataset, "groups", [""] * len(encoded))
        self.groups = [groups[i] for i in self.items]
        shape = (0, len(targets.classes)) if targets.kind == "labels" else (0,)
        kept = [target for target in encoded if target is not None]
        self.encoded = np.array(
            kept if kept else np.empty(shape), dtype=np.int64 if targets.kind == "label" else np.float32
        )
        self._shard_dataset = shard_dataset
        self._sample_rate: int = shard_dataset.sample_rate
        self._num_samples = round(clip_s * self._sample_rate)
        self._extractor = extractor
        self._augmentation = augmentation
        if extractor is not None and extractor.sampling_rate != self._sample_rate:
            raise SettingsError(
                f"the model hears {extractor.sampling_rate:,} Hz and the shard has {self._sample_rate:,} Hz: set "
                f"sample_rate: {extractor.sampling_rate} in the settings of the envoy"
            )
        self._keep = 4 * self._num_samples * len(self.items) <= MAX_KEPT_BYTES
        self._waveforms: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, clips: Sequence[int], seed: tuple[int, ...] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (batch, ...) and targets (batch, ...) of some clips; with a seed they are varied by it."""
        inputs = [self._inputs(clip, seed) for clip in clips]
        return torch.from_numpy(np.stack(inputs)), torch.from_numpy(self.encoded[np.asarray(clips)])

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all clips in order."""
        for first in range(0, len(self), batch_size):
            yield self.batch(range(first, min(first + batch_size, len(self))))

    def _inputs(self, clip: int, seed: tuple[int, ...] | None) -> np.ndarray:
        if seed is None:
            return make_inputs(self._extractor, self._part(clip, self._num_samples), self._sample_rate)
        generator = np.random.default_rng((*seed, self.items[clip]))
        if self._augmentation is None:
            return make_inputs(self._extractor, self._part(clip, self._num_samples, generator), self._sample_rate)
        speed = self._augmentation.draw_speed(generator)
        part = self._part(clip, round(self._num_samples * speed), generator)
        part = _fit(change_speed(part, speed), self._num_samples)
        varied = self._augmentation.apply(part, self._sample_rate, generator)
        inputs = make_inputs(self._extractor, varied, self._sample_rate)
        return (
            self._augmentation.mask(inputs, frequency_axis(self._extractor), generator) if inputs.ndim == 2 else inputs
        )

    def _part(self, clip: int, num_samples: int, generator: np.random.Generator | None = None) -> np.ndarray:
        """Return the beginning of a clip, or a part at random: (num_samples,)."""
        item = self.items[clip]
        waveform = self._waveforms.get(item)
        if waveform is None:
            waveform = self._shard_dataset[item][0]
            if self._keep and len(waveform) <= 2 * self._num_samples:
                self._waveforms[item] = waveform
        spare = len(waveform) - num_samples
        first = int(generator.integers(spare + 1)) if generator is not None and spare > 0 else 0
        return _fit(waveform[first:], num_samples)


def _fit(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """Return a waveform cut, or filled up with zeros: (num_samples,)."""
    return np.pad(waveform[:num_samples], (0, max(0, num_samples - len(waveform))))


def draw_epoch(clips: Clips, batch_size: int, balance: bool, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Return the batches of an epoch, positions of clips, whose sizes differ by one at most.

    Each clip comes once; or, balanced, as many are drawn with repetition, every class that is there as often as any
    other (of clips with several labels, each by its rarest one).
    """
    generator = np.random.default_rng(seed)
    if len(clips) == 0:
        return []
    weights = clip_weights(clips)
    chances = weights / weights.sum() if balance else None
    order = generator.choice(len(clips), size=len(clips), replace=balance, p=chances)
    return np.array_split(order, math.ceil(len(clips) / batch_size))


def clip_weights(clips: Clips) -> np.ndarray:
    """Return 1 over the number of clips of each clip's class, float (clips,); of several labels that of the rarest.

    Clips that have numbers all weigh 1.
    """
    if clips.targets.kind == "number":
        return np.ones(len(clips))
    if clips.targets.kind == "label":
        return 1 / np.bincount(clips.encoded, minlength=clips.targets.num_outputs)[clips.encoded]
    counts = np.maximum(clips.encoded.sum(axis=0), 1)
    rarest = np.where(np.greater(clips.encoded, 0), 1 / counts, 0).max(axis=1)
    without = np.equal(rarest, 0)
    return np.where(without, 1 / max(1, int(without.sum())), rarest)


class RecordingsData(ShardData):
    """Gives the tasks the clips of the node's shard of recordings: see `Clips`."""

    def __init__(
        self,
        targets: Targets,
        clip_s: float,
        extractor: Any = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self._arguments = (targets, clip_s, extractor)
        self._augmentation = augmentation

    def make_train(self, dataset: ShardDataset) -> Clips:
        return Clips(dataset, *self._arguments, self._augmentation)

    def make_validation(self, dataset: ShardDataset) -> Clips:
        return Clips(dataset, *self._arguments)
