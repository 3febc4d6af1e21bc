"""Clips of a shard as sources to mix."""

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.node.shard_data import ShardData


class Sources:
    """Items are triples: speech, noise, more noise. A client's recording is the sum of the first two.

    With `supervised` the client knows the three apart; otherwise it has the recording, and the third by itself.
    """

    def __init__(self, shard_dataset: ShardDataset) -> None:
        self.shard_dataset = shard_dataset
        self.supervised: bool = shard_dataset.supervised
        self.sample_rate: int = shard_dataset.sample_rate

    def __len__(self) -> int:
        return len(self.shard_dataset)

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch: what the shard draws at random does not depend on the epochs before."""
        self.shard_dataset.set_epoch(epoch)

    def whole(self, items: np.ndarray) -> torch.Tensor:
        """Return whole items, float32 (items, 3, samples)."""
        return torch.from_numpy(np.array([self.shard_dataset[int(item)] for item in items]))

    def crops(self, items: np.ndarray, num_samples: int, generator: np.random.Generator) -> torch.Tensor:
        """Return cuts, float32 (items, 3, num_samples), each out of its waveform where `generator` says.

        The zeros that a short recording ends in are left out of a cut as far as can be: where one of two mixtures is
        silent, there is nothing to learn.
        """
        batch = torch.empty(len(items), 3, num_samples)
        for row, item in zip(batch, items, strict=True):
            for target, waveform in zip(row, self.shard_dataset[int(item)], strict=True):
                start = generator.integers(_last_start(waveform, num_samples) + 1)
                target.copy_(torch.from_numpy(waveform[start : start + num_samples]))
        return batch


def _last_start(waveform: np.ndarray, num_samples: int) -> int:
    recorded = np.flatnonzero(waveform)
    return max(0, int(recorded[-1]) + 1 - num_samples) if len(recorded) else 0


class EnhancementData(ShardData):
    """Gives the tasks the clips of the node's shard."""

    def make_train(self, dataset: ShardDataset) -> Sources:
        return Sources(dataset)
