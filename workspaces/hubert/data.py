"""Clips of a shard in batches of similar lengths, limited by the samples in all."""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.errors import SettingsError
from openfl_audio.node.shard_data import ShardData
from workspaces.hubert.masking import MaskSettings, draw_mask
from workspaces.hubert.model import HOP_LENGTH, RECEPTIVE_FIELD, count_frames, real_frames

# Clips are sorted by lengths that are off by up to this share, so that a clip meets others in every epoch.
LENGTH_JITTER = 0.1


class Crop(NamedTuple):
    """`num_samples` of the clip `item`, from `start`, which is where a frame begins."""

    item: int
    start: int
    num_samples: int


@dataclass(frozen=True)
class BatchLimits:
    """`max_samples` counts the padding too; clips longer than `max_clip_samples` are cropped, elsewhere every time."""

    max_samples: int
    max_clip_samples: int
    max_clips: int


@dataclass(frozen=True)
class Batch:
    """Clips, padded with zeros.

        {
            "waveforms": float32 (batch, samples)
            "lengths": int64 (batch,)          in samples
            "frames": int64 (batch,)           what HuBERT makes of that many samples
            "targets": int64 (batch, frames)   clusters; 0 where there is padding, or there are no targets
            "mask": bool (batch, frames)       hidden from the model; never padding
        }

    lengths and frames stay on the CPU, where they are asked for.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    frames: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """Frames that are not padding: bool (batch, frames)."""
        return real_frames(self.frames, self.mask.shape[1]).to(self.mask.device)

    def to(self, device: str) -> "Batch":
        moved = (tensor.to(device, non_blocking=True) for tensor in (self.waveforms, self.targets, self.mask))
        waveforms, targets, mask = moved
        return Batch(waveforms, self.lengths, self.frames, targets, mask)


class Clips:
    """A split of a shard. With `clusters` there are targets for every frame, numbers below that.

    Raises SettingsError, naming what does not fit.

    Attributes:
        speakers: who says each clip, (clips,); "" where that is not known.
    """

    def __init__(self, shard_dataset: ShardDataset, mask: MaskSettings | None, clusters: int | None) -> None:
        """Read what is known of the clips without their audio; without `mask` nothing is hidden from the model."""
        self.shard_dataset, self.mask, self.clusters = shard_dataset, mask, clusters
        self.num_samples = np.asarray(shard_dataset.num_samples)
        self.frames = count_frames(self.num_samples)
        self.speakers = [str(each) for each in getattr(shard_dataset, "speakers", [""] * len(self.num_samples))]
        if clusters is not None:
            _check_targets(shard_dataset.targets_info, clusters)
        if len(self.num_samples) and self.num_samples.min() < RECEPTIVE_FIELD:
            name = shard_dataset.names[int(self.num_samples.argmin())]
            raise SettingsError(f"clip {name} has {self.num_samples.min()} samples: one frame needs {RECEPTIVE_FIELD}")

    def __len__(self) -> int:
        return len(self.num_samples)

    @cached_property
    def masked_frames(self) -> int:
        """Number of frames of all clips that `validation_batches` masks."""
        return sum(int(self._own_mask(item).sum()) for item in range(len(self)))

    def train_batches(self, limits: BatchLimits, epochs: int, generator: np.random.Generator) -> list[list[Crop]]:
        """Return what goes into each batch, for `load`, in random order."""
        plans = (plan_batches(self.num_samples, limits, generator) for _ in range(epochs))
        return [batch for plan in plans for batch in plan]

    def load(self, plan: Sequence[Sequence[Crop]], generator: np.random.Generator) -> Iterator[Batch]:
        """Yield the batches of a plan, with masks drawn from `generator`. The next one is read while one is in use."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            futures = [reader.submit(self._read, crops, generator) for crops in plan[:1]]
            for number in range(len(plan)):
                batch = futures.pop().result()
                if number + 1 < len(plan):
                    futures.append(reader.submit(self._read, plan[number + 1], generator))
                yield batch

    def validation_batches(self, max_samples: int) -> Iterator[Batch]:
        """Yield all clips, whole, with masks that are functions of their names; one longer than the limit is alone."""
        yield from map(self._read, cut_batches(self.num_samples, np.argsort(self.num_samples), max_samples))

    def alone(self, item: int, max_samples: int, generator: np.random.Generator) -> Batch:
        """Return a batch of one clip, or of a part of it with `max_samples` that `generator` draws, and its masks."""
        samples = int(self.num_samples[item])
        return self._read([_move(Crop(item, 0, min(samples, max_samples)), samples, generator)], generator)

    def _read(self, crops: Sequence[Crop], generator: np.random.Generator | None = None) -> Batch:
        lengths = torch.tensor([crop.num_samples for crop in crops])
        frames = count_frames(lengths)
        waveforms = torch.zeros(len(crops), int(lengths.max()))
        targets = torch.zeros(len(crops), int(frames.max()), dtype=torch.int64)
        mask = torch.zeros(targets.shape, dtype=torch.bool)
        for row, (crop, n) in enumerate(zip(crops, frames.tolist(), strict=True)):
            waveform, clusters = self.shard_dataset[crop.item]
            waveforms[row, : crop.num_samples] = torch.from_numpy(waveform[crop.start : crop.start + crop.num_samples])
            if self.clusters is not None:
                first = crop.start // HOP_LENGTH
                targets[row, :n] = torch.from_numpy(self._checked(crop.item, clusters)[first : first + n])
            if self.mask is not None:
                drawn = self._own_mask(crop.item) if generator is None else draw_mask(n, self.mask, generator)
                mask[row, :n] = torch.from_numpy(drawn)
        return Batch(waveforms, lengths, frames, targets, mask)

    def _own_mask(self, item: int) -> np.ndarray:
        if self.mask is None:
            return np.zeros(self.frames[item], dtype=bool)
        name = zlib.crc32(self.shard_dataset.names[item].encode())
        return draw_mask(int(self.frames[item]), self.mask, np.random.default_rng(name))

    def _checked(self, item: int, targets: np.ndarray) -> np.ndarray:
        frames, name = self.frames[item], self.shard_dataset.names[item]
        if len(targets) != frames:
            raise SettingsError(f"clip {name} has {len(targets)} targets and {frames} frames: make its targets again")
        if targets.min() < 0 or targets.max() >= (self.clusters or 0):
            raise SettingsError(f"clip {name} has targets outside of 0 to {(self.clusters or 0) - 1}")
        return targets


def plan_batches(num_samples: np.ndarray, limits: BatchLimits, generator: np.random.Generator) -> list[list[Crop]]:
    """Return batches of similar lengths with every clip once, in random order; `generator` draws the crops."""
    lengths = np.minimum(num_samples, limits.max_clip_samples)
    order = np.argsort(lengths * generator.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, size=len(lengths)))
    batches = cut_batches(lengths, order, limits.max_samples, limits.max_clips)
    shuffled = [batches[i] for i in generator.permutation(len(batches))]
    return [[_move(crop, int(num_samples[crop.item]), generator) for crop in batch] for batch in shuffled]


def cut_batches(
    lengths: np.ndarray, order: np.ndarray, max_samples: int, max_clips: int | None = None
) -> list[list[Crop]]:
    """Return clips of `lengths` (clips,), taken in `order`, in as few batches as the limits allow; padding counts.

    >>> batches = cut_batches(np.array([300, 100, 200, 700]), np.array([1, 2, 0, 3]), max_samples=600)
    >>> [[crop.item for crop in batch] for batch in batches]
    [[1, 2], [0], [3]]
    """
    batches: list[list[Crop]] = []
    longest = 0
    for item in order.tolist():
        length = int(lengths[item])
        longest = max(longest, length)
        if not batches or (len(batches[-1]) + 1) * longest > max_samples or len(batches[-1]) == max_clips:
            batches.append([])
            longest = length
        batches[-1].append(Crop(item, 0, length))
    return batches


def _move(crop: Crop, num_samples: int, generator: np.random.Generator) -> Crop:
    # By whole frames, so that the targets of the clip are those of its part.
    return crop._replace(start=HOP_LENGTH * int(generator.integers((num_samples - crop.num_samples) // HOP_LENGTH + 1)))


def _check_targets(info: dict[str, Any] | None, clusters: int) -> None:
    if info is None:
        raise SettingsError("the shard has no targets: name a folder of targets with data.targets")
    if info["clusters"] > clusters:
        raise SettingsError(f"targets have {info['clusters']} clusters, and model.clusters is {clusters}")


class HubertData(ShardData):
    """Gives the tasks their clips: those of the node's shard. Sizes are in frames, as the losses are means over those.

    The mean over nodes of masked_accuracy is then that over the masked frames of all.
    """

    units: ClassVar[dict[str, str]] = {"train": "frames", "validate": "frames"}

    def __init__(self, mask: MaskSettings | None, clusters: int | None) -> None:
        super().__init__()
        self._mask, self._clusters = mask, clusters

    def make_train(self, dataset: ShardDataset) -> Clips:
        return Clips(dataset, self._mask, self._clusters)

    def get_train_data_size(self) -> int:
        return int(self._train.frames.sum())

    def get_valid_data_size(self) -> int:
        return self._validation.masked_frames if self._validation.mask else int(self._validation.frames.sum())
