"""One node's shard of an audio dataset that the library `datasets` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor
from shard_descriptors.hub.layout import open_splits, read_splits


class HubShardDescriptor(RecordingsShardDescriptor):
    """One node's shard of an audio dataset, from the hub or from disk; all parameters come from the envoy's YAML.

    Recordings are decoded by soundfile, not by `datasets`: WAV, FLAC, OGG, Opus and MP3, whole or inside of a table.

    Args:
        data_path: a name on the hub, such as "google/fleurs"; or a folder that `save_to_disk` wrote, that has Parquet
            files, or that has a folder for each class.
        columns: names of columns by what they are, as `TableShardDescriptor` has them; `path` is by default the one
            column of audio, and need not be named: {label: intent, group: speaker_id}.
        config: which of its configurations, where a dataset has several.
        revision: of the dataset on the hub: a commit, a branch or a tag. Name a commit, and nobody changes the data.
        splits: the dataset's splits by ours, such as {train: train.clean.100, test: test.clean}; by default those whose
            names tell what they are.
        max_clips: of each split, the first so many are streamed, and kept in the cache of `datasets`: of a dataset
            that is larger than the disk. By default a dataset is downloaded whole.
        separator: what stands between several labels in one cell.
        options: those of `RecordingsShardDescriptor`.

    Raises:
        CorpusError: no such dataset, or it cannot be reached; a column or a split that lacks; or a wrong parameter.
    """

    def __init__(
        self,
        data_path: str,
        columns: Mapping[str, str],
        config: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
        max_clips: int | None = None,
        separator: str = "|",
        **options: Any,
    ) -> None:
        found = open_splits(str(data_path), config, revision, max_clips)
        super().__init__(read_splits(str(data_path), found, columns, splits, separator), **options)
        self.needs_network = not Path(data_path).expanduser().is_dir()
