"""Patches of a shard, in batches for the model."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.errors import SettingsError
from openfl_audio.node.shard_data import ShardData


class Patches:
    """A split of a shard, many patches at once, straight from its memory map.

    Attributes:
        clip: int64 (patches,), the clip that each belongs to
        clip_labels: float32 (clips, classes), 0 or 1
    """

    def __init__(self, shard_dataset: ShardDataset) -> None:
        self.clip = shard_dataset.clip
        self.clip_labels = shard_dataset.clip_labels
        self._shard_dataset = shard_dataset

    def __len__(self) -> int:
        return len(self.clip)

    def batches(
        self, batch_size: int, seed: tuple[int, ...], device: str
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Yield all patches once, in an order that is a function of `seed`.

        Yields:
            clip, int64 (batch,), on the CPU; inputs, float32 (batch, 101, 96); and labels, float32 (batch, classes),
            those of the clip.
        """
        for indices in shuffled_batches(len(self), batch_size, seed):
            yield self.clip[indices], *self.at(indices, device)

    def at(self, indices: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return patches (batch, 101, 96), and labels (batch, classes) of their clips, by `indices` in any order."""
        order = np.argsort(indices)  # a memory map is read forward
        inputs = self._shard_dataset.patches(indices[order])[np.argsort(order)]
        labels = self.clip_labels[self.clip[indices]]
        return torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)


def shuffled_batches(number: int, batch_size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Return indices below `number`, each once, in ceil(number / batch_size) batches whose sizes differ by one at most.

    So there is no small last batch, with statistics of its own: 65 patches in batches of up to 64 are 33 and 32. Each
    batch is sorted, as a memory map is read forward.

    >>> sorted(len(batch) for batch in shuffled_batches(10, 4, (0,)))
    [3, 3, 4]
    """
    if number == 0:
        return []
    order = np.random.default_rng(seed).permutation(number)
    return [np.sort(batch) for batch in np.array_split(order, math.ceil(number / batch_size))]


class SoundEventData(ShardData):
    """Gives the tasks the patches of the node's shard. The weight of a client's update is its number of patches."""

    def __init__(self, classes: int | None) -> None:
        """Take the number of the model's `classes`: a corpus with another number is refused with SettingsError."""
        super().__init__()
        self._classes = classes

    def make_train(self, dataset: ShardDataset) -> Patches:
        check_classes(self._classes, dataset)
        return Patches(dataset)


def check_classes(classes: int | None, shard_dataset: ShardDataset) -> None:
    """Raise SettingsError unless the corpus has as many classes as the model."""
    number = len(shard_dataset.classes)
    if number != classes:
        raise SettingsError(f"model.classes is {classes}, but the corpus has {number}: set model.classes={number}")
