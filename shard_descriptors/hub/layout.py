"""An audio dataset -> the recordings in it. `datasets` decodes nothing here: it would need torchcodec and FFmpeg."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.files import name_key
from shard_descriptors.common.recordings import SPLIT_NAMES, SPLITS, Listing, Recording, StoredRecording, window_problem
from shard_descriptors.table.layout import cell_text, check_columns, read_number, read_target

# What `save_to_disk` writes.
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
Splits = dict[str, Any]  # a datasets.Dataset by the name of a split


def open_splits(
    place: str, config: str | None = None, revision: str | None = None, max_clips: int | None = None
) -> Splits:
    """Open a dataset, and return its splits with audio that is not decoded.

    `place` is a name on the hub, or a folder; the others are as `HubShardDescriptor` has them.

    Raises:
        CorpusError: there is no such dataset, it cannot be reached, or it is none of audio.
    """
    import datasets

    if max_clips is not None and (not isinstance(max_clips, int) or max_clips < 1):
        raise CorpusError(f"max_clips: {max_clips!r} should be a whole number from 1 on")
    # Recordings are opened later, when a worker is in a folder of its own.
    folder = Path(place).expanduser().absolute()
    try:
        if any((folder / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(folder))
        else:
            where = str(folder) if folder.is_dir() else place
            builder: Any = datasets.load_dataset_builder(where, config, revision=revision)
            if hasattr(builder, "BASE_FEATURE"):
                # A folder of files: their paths, as `datasets` would decode audio only to write it down again.
                builder.BASE_FEATURE = type("FilePath", (datasets.Value,), {"__init__": _take_text})
            if max_clips is None:
                builder.download_and_prepare()
                found = builder.as_dataset()
            else:
                found = builder.as_streaming_dataset()
    # It raises errors of several libraries, some of them its own.
    except Exception as error:
        raise CorpusError(
            f"data_path: {place} cannot be opened as a dataset ({_first_line(error)}); it should be a folder, or a "
            "name on the hub, which has to be reachable"
        ) from error
    splits: Splits = dict(found) if isinstance(found, dict) else {"train": found}
    opened = {name: _without_decoding(split) for name, split in splits.items()}
    if max_clips is None:
        return opened
    return {name: _keep(split, max_clips) for name, split in opened.items()}


def read_splits(
    name: str,
    splits: Splits,
    columns: Mapping[str, str],
    chosen: Mapping[str, str] | None = None,
    separator: str = "|",
) -> Listing:
    """List the recordings of a dataset.

    Args:
        name: of the dataset, for messages.
        splits: as `open_splits` returns them.
        columns: by what they are, as `read_table` takes them; `path` is the column of audio, by default the only one.
        chosen: the dataset's splits by ours.
        separator: between several labels in one cell.

    Raises:
        CorpusError: a column or a split that lacks, or a cell that cannot be read, with its row.
    """
    names = _choose_splits(name, list(splits), chosen)
    features = splits[next(iter(names.values()))].features
    columns = {"path": columns["path"] if "path" in columns else _audio_column(name, features), **columns}
    kind = check_columns(columns)
    if lacks := [column for column in columns.values() if column not in features]:
        raise CorpusError(f"{name}: lacks the columns {', '.join(lacks)} of the settings; it has {', '.join(features)}")
    listing = Listing(name, kind)
    for split, own in names.items():
        # A dataset with one split has none: ours are made.
        given = "" if len(names) == 1 and chosen is None else split
        dataset = splits[own]
        for number, row in enumerate(dataset.select_columns(list(columns.values()))):
            where = f"{own}, row {number}"
            target = read_target(_names_of(row[columns[kind]], features[columns[kind]]), kind, separator, where, False)
            file, called = _audio_of(row[columns["path"]], dataset, columns["path"], number)
            called = f"{where} ({called})" if called else where
            if file is None or target is None:
                listing.left_out[called] = "has no audio" if file is None else f"has no {kind}"
                continue
            group = row[columns["group"]] if "group" in columns else ""
            recording = Recording(
                name=called,
                file=file,
                target=target,
                group=cell_text(_names_of(group, features[columns["group"]])) if "group" in columns else "",
                split=given,
                start_s=read_number(row.get(columns.get("start", "")), where, False) or 0.0,
                end_s=read_number(row.get(columns.get("end", "")), where, False),
            )
            if reason := window_problem(recording):
                listing.left_out[called] = reason
            else:
                listing.recordings.append(recording)
    return listing


def _take_text(feature: Any) -> None:
    super(type(feature), feature).__init__("string")


def _choose_splits(name: str, found: list[str], chosen: Mapping[str, str] | None) -> dict[str, str]:
    """Return the dataset's splits by ours, in our order."""
    if chosen is None:
        names = {SPLIT_NAMES[name_key(each)]: each for each in found if name_key(each) in SPLIT_NAMES}
    else:
        names = dict(chosen)
    wrong = [each for each in names if each not in SPLITS] + [each for each in names.values() if each not in found]
    if wrong or "train" not in names:
        said = f"{', '.join(wrong)} is unknown" if wrong else "none of its splits is called train"
        raise CorpusError(
            f"splits: {said}; {name} has {', '.join(found)}, and ours are {', '.join(SPLITS)}: "
            f"splits: {{train: {found[0]}}}"
        )
    return {split: names[split] for split in SPLITS if split in names}


def _audio_column(name: str, features: Mapping[str, Any]) -> str:
    """Return the one column of audio; a folder of files has their paths in a column of that name."""
    from datasets import Audio

    columns = [column for column, feature in features.items() if isinstance(feature, Audio)]
    columns = columns or [column for column in features if column == "audio"]
    if len(columns) != 1:
        raise CorpusError(
            f"columns: {name} has {len(columns)} columns of audio among {', '.join(features)}: name one as path"
        )
    return columns[0]


def _audio_of(cell: Any, dataset: Any, column: str, number: int) -> tuple[Path | StoredRecording | None, str]:
    """Return where the audio of a row is, in a file or in the row itself, and what it is called."""
    if isinstance(cell, str):
        return Path(cell), Path(cell).name
    if not cell or (cell.get("bytes") is None and not cell.get("path")):
        return None, ""
    called = Path(cell.get("path") or "").name
    if cell["bytes"] is None:
        return Path(cell["path"]), called
    return StoredRecording(dataset, column, number, dataset._fingerprint, len(cell["bytes"]), called), called


def _names_of(cell: Any, feature: Any) -> Any:
    """Return the names of classes that a dataset keeps as numbers; everything else as it is."""
    from datasets import ClassLabel

    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    if isinstance(feature, ClassLabel):
        return None if cell is None or cell < 0 else feature.int2str(cell)
    if isinstance(inner, ClassLabel):
        return [inner.int2str(each) for each in cell or []]
    return cell


def _without_decoding(split: Any) -> Any:
    from datasets import Audio

    for column, feature in (split.features or {}).items():
        if isinstance(feature, Audio):
            split = split.cast_column(column, Audio(decode=False))
    return split


def _keep(stream: Any, max_clips: int) -> Any:
    """Return the first rows of a stream as a dataset of its own, which the cache of `datasets` keeps."""
    from datasets import Audio, Dataset, Features, Value

    if stream.features is None:
        stream = stream._resolve_features()
    stored = {"bytes": Value("binary"), "path": Value("string")}
    audio = [column for column, feature in stream.features.items() if isinstance(feature, Audio) or column == "audio"]
    features = Features({**stream.features, **dict.fromkeys(audio, stored)})
    kept = Dataset.from_generator(
        _rows, features=features, gen_kwargs={"stream": stream, "audio": audio, "max_clips": max_clips}
    )
    for column in audio:
        kept = kept.cast_column(column, Audio(decode=False))
    return kept


def _rows(stream: Any, audio: list[str], max_clips: int) -> Iterator[dict[str, Any]]:
    from datasets.utils.file_utils import xopen

    for row in stream.take(max_clips):
        for column in audio:
            cell = {"bytes": None, "path": row[column]} if isinstance(row[column], str) else row[column]
            if cell and cell["bytes"] is None and cell["path"]:
                with xopen(cell["path"], "rb") as file:
                    cell = {"bytes": file.read(), "path": cell["path"]}
            row[column] = cell
        yield row


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
