"""Recordings in one folder for each class, or beside a metadata.csv, as Hugging Face's AudioFolder has them."""

from shard_descriptors.folder.shard import FolderShardDescriptor

__all__ = ["FolderShardDescriptor"]
