"""FSD50K by uploader: log-mel patches of one second with the labels of their clip."""

from shard_descriptors.fsd50k.shard import Fsd50kShardDataset, Fsd50kShardDescriptor

__all__ = ["Fsd50kShardDataset", "Fsd50kShardDescriptor"]
