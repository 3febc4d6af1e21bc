"""Kinds of recordings of a site's own: a table, a folder for each class, or a dataset, also of the hub."""

from pathlib import Path

from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor
from shard_descriptors.folder import FolderShardDescriptor
from shard_descriptors.folder.layout import METADATA
from shard_descriptors.hub import HubShardDescriptor
from shard_descriptors.hub.layout import SAVED
from shard_descriptors.table import TableShardDescriptor
from shard_descriptors.table.layout import SUFFIXES


def kind_of(data: Path) -> type[RecordingsShardDescriptor]:
    """Return the shard descriptor that reads the recordings at `data`."""
    if not data.is_dir():
        return TableShardDescriptor if data.exists() or data.suffix.casefold() in SUFFIXES else HubShardDescriptor
    is_dataset = any((data / name).is_file() for name in SAVED) or next(data.glob("*.parquet"), None) is not None
    is_named = any((data / name).is_file() for name in METADATA)
    return HubShardDescriptor if is_dataset and not is_named else FolderShardDescriptor
