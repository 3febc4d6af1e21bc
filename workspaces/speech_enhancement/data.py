"""Clips of a shard as sources to mix."""

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from federation.shard_data import ShardData


class Sources:
    """Items are triples: speech, noise, more noise. A client's recording is the sum of the first two.

    With `supervised` the client knows the three apart; otherwise it has the recording, and the third by itself.
    """

    def __init__(self, shard_dataset: ShardDataset, num_samples: int) -> None:
        """Of each waveform `num_samples` are taken, which are no more than it has."""
        self.shard_dataset = shard_dataset
        self.num_samples = num_samples
        self.supervised: bool = shard_dataset.supervised

    def __len__(self) -> int:
        return len(self.shard_dataset)

    def begin_epoch(self, epoch: int) -> None:
        """What the shard draws at random does not depend on the epochs before."""
        self.shard_dataset.set_epoch(epoch)

    def batch(self, items: np.ndarray, generator: np.random.Generator | None = None) -> torch.Tensor:
        """float32 (items, 3, samples), cut out of the clips where `generator` says, or at their beginning.

        The zeros that a short recording ends in are left out of a cut as far as can be: where one of two mixtures is
        silent, there is nothing to learn.
        """
        batch = torch.empty(len(items), 3, self.num_samples)
        for row, item in zip(batch, items, strict=True):
            for target, waveform in zip(row, self.shard_dataset[int(item)], strict=True):
                start = 0 if generator is None else generator.integers(self._last_start(waveform) + 1)
                target.copy_(torch.from_numpy(waveform[start : start + self.num_samples]))
        return batch

    def _last_start(self, waveform: np.ndarray) -> int:
        recorded = np.flatnonzero(waveform)
        return max(0, int(recorded[-1]) + 1 - self.num_samples) if len(recorded) else 0


class EnhancementData(ShardData):
    """Gives the tasks their clips: those of the node's shard, `num_samples` of each."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self._num_samples = num_samples

    def make_train(self, dataset: ShardDataset) -> Sources:
        return Sources(dataset, self._num_samples)
