"""LibriFSD50K and FedWHAM: pairs of speech and noise by speaker, for speech enhancement."""

from shard_descriptors.librifsd50k.shard import LibriFsd50kShardDescriptor

__all__ = ["LibriFsd50kShardDescriptor"]
