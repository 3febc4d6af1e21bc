"""SUPERB keyword spotting, or a folder of Speech Commands: one second of speech, twelve labels."""

from shard_descriptors.superb.layout import LABELS
from shard_descriptors.superb.shard import SuperbShardDescriptor

__all__ = ["LABELS", "SuperbShardDescriptor"]
