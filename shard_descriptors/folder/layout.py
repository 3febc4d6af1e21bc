"""A folder of recordings -> which are there: one folder for each class, or a metadata.csv that names them."""

import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.files import list_folders, name_key, printable
from shard_descriptors.common.recordings import SPLIT_NAMES, Listing, Recording, compile_pattern, find_audio
from shard_descriptors.table.layout import read_table

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
COLUMNS = {"path": "file_name", "label": "label"}


def read_folder(
    root: Path, columns: Mapping[str, str] | None = None, group_pattern: str | None = None, separator: str = "|"
) -> Listing:
    """Read a folder, or its folders train, validation and test where it has no others.

    Args:
        root: the folder. With a file of METADATA in it, that names the recordings; otherwise each folder in it is a
            class, and all recordings below it are of that class.
        columns: of that file, as `read_table` takes them; COLUMNS by default.
        group_pattern: a regular expression with one pair of brackets, around the group in the path of a recording; one
            in which it finds nothing is a group of its own. Without it all are.
        separator: as `read_table` has it.

    Raises:
        CorpusError: no such folder, nothing in it, or what `read_table` raises.
    """
    if not root.is_dir():
        raise CorpusError(f"data_path: there is no folder {root}")
    folders = list_folders(root)
    parts = {name: SPLIT_NAMES[name_key(name)] for name in folders if name_key(name) in SPLIT_NAMES}
    if not parts or len(parts) < len(folders) or _metadata(root) is not None:
        listing = _read_part(root, columns, separator)
    else:
        listings = [(split, _read_part(root / name, columns, separator), name) for name, split in parts.items()]
        listing = Listing(str(root), listings[0][1].kind)
        for split, part, name in listings:
            listing.recordings += [replace(each, split=split, name=f"{name}/{each.name}") for each in part.recordings]
            listing.left_out |= {f"{name}/{file}": reason for file, reason in part.left_out.items()}
            for column, cells in part.columns.items():
                listing.columns.setdefault(column, []).extend(cells)
    if group_pattern is not None:
        pattern = compile_pattern(group_pattern)
        listing.recordings = [
            replace(each, group=found[1]) if (found := pattern.search(each.name)) and found[1] else each
            for each in listing.recordings
        ]
    return listing


def _read_part(root: Path, columns: Mapping[str, str] | None, separator: str) -> Listing:
    metadata = _metadata(root)
    if metadata is not None:
        return read_table(metadata, root, columns or COLUMNS, separator)
    if columns is not None:
        raise CorpusError(f"columns: {root} has none of {', '.join(METADATA)} with such columns")
    listing = Listing(str(root), "label")
    for folder in list_folders(root):
        label = unicodedata.normalize("NFC", folder).strip()
        for file in find_audio(root / folder):
            name = printable(file.relative_to(root).as_posix())
            listing.recordings.append(Recording(name, file, label))
    if not listing.recordings:
        raise CorpusError(
            f"data_path: {root} has no recording: it should have a folder for each class, or {METADATA[0]}"
        )
    return listing


def _metadata(root: Path) -> Path | None:
    return next((root / name for name in METADATA if (root / name).is_file()), None)
