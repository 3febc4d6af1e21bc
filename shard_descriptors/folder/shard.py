"""One node's shard of the recordings in a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor, places_of
from shard_descriptors.folder.layout import read_folder


class FolderShardDescriptor(RecordingsShardDescriptor):
    """One node's shard of the recordings in a folder; all parameters come from the envoy's YAML.

    Args:
        data_path: a folder with a folder for each class, or with a metadata.csv (.jsonl, .parquet); or one with the
            folders train, validation and test, each of which is such a folder.
        columns: of the metadata, as `TableShardDescriptor` has them; {path: file_name, label: label} by default.
        group_pattern: a regular expression that finds the speaker in a path, in brackets: '([^/_]+)_[^/]*$' is what
            stands before the first underscore of the file's name.
        separator: what stands between several labels in one cell of the metadata.
        options: those of `RecordingsShardDescriptor`.

    Raises:
        CorpusError: no such folder, nothing in it, a wrong parameter, or what the metadata's table raises.
    """

    def __init__(
        self,
        data_path: str | Path,
        columns: Mapping[str, str] | None = None,
        group_pattern: str | None = None,
        separator: str = "|",
        **options: Any,
    ) -> None:
        # Recordings are opened later, when a worker is in a folder of its own.
        root = Path(data_path).expanduser().absolute()
        super().__init__(read_folder(root, columns, group_pattern, separator), **options)
        self.reads = places_of(self.listing, root)
