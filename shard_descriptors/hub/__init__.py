"""Audio datasets of the Hugging Face hub, or saved on disk, read through the library `datasets`."""

from shard_descriptors.hub.shard import HubShardDescriptor

__all__ = ["HubShardDescriptor"]
