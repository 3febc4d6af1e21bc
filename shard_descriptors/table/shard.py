"""One node's shard of the recordings that a table names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor, places_of
from shard_descriptors.table.layout import read_table


class TableShardDescriptor(RecordingsShardDescriptor):
    """One node's shard of the recordings that a table names; all parameters come from the envoy's YAML.

    Args:
        data_path: the table: .csv or .tsv (commas, semicolons or tabs), .jsonl or .parquet.
        columns: names of columns by what they are, such as {path: file, label: word, group: speaker}: `path`, one of
            `label`, `labels`, `number` and `text`, and where there are such columns `start` and `end` (in seconds),
            `group` (speaker, patient, device) and `split`.
        audio_path: the folder that paths are relative to; by default that of the table.
        separator: what stands between several labels in one cell.
        options: those of `RecordingsShardDescriptor`.

    Raises:
        CorpusError: no such table, a column that lacks, a cell that cannot be read, or a wrong parameter.
    """

    def __init__(
        self,
        data_path: str | Path,
        columns: Mapping[str, str],
        audio_path: str | Path | None = None,
        separator: str = "|",
        **options: Any,
    ) -> None:
        # Recordings are opened later, when a worker is in a folder of its own.
        table = Path(data_path).expanduser().absolute()
        audio = table.parent if audio_path is None else Path(audio_path).expanduser().absolute()
        super().__init__(read_table(table, audio, columns, separator), **options)
        self.reads = places_of(self.listing, table, audio)
