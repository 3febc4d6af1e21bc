"""Recordings that a table names: CSV, TSV, JSON lines or Parquet, with a label, several, a number or a text each."""

from shard_descriptors.table.shard import TableShardDescriptor

__all__ = ["TableShardDescriptor"]
