"""FSD50K's published folders -> its clips: which split, which classes, whose upload. Tables only; no audio is opened.

Fonseca et al. 2022, "FSD50K: an open dataset of human-labeled sound events", arXiv 2010.00475; Zenodo record 4060432.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shard_descriptors.common.errors import CorpusError, first_names
from shard_descriptors.common.files import list_recordings, name_key
from shard_descriptors.common.text import read_columns, read_json, read_rows

SPLITS = ("train", "validation", "test")
GROUND_TRUTH = "FSD50K.ground_truth"
OFFICIAL = {"train": "train", "val": "validation"}  # the column `split` of dev.csv
VOCABULARY = f"{GROUND_TRUTH}/vocabulary.csv"


class Part(NamedTuple):
    """One of the two published halves, by the paths of its table, metadata and audio."""

    table: str
    metadata: str
    audio: str
    columns: tuple[str, ...]


DEVELOPMENT = Part(
    f"{GROUND_TRUTH}/dev.csv",
    "FSD50K.metadata/dev_clips_info_FSD50K.json",
    "FSD50K.dev_audio",
    ("fname", "labels", "split"),
)
EVALUATION = Part(
    f"{GROUND_TRUTH}/eval.csv",
    "FSD50K.metadata/eval_clips_info_FSD50K.json",
    "FSD50K.eval_audio",
    ("fname", "labels"),
)
TABLES = (VOCABULARY, DEVELOPMENT.table, EVALUATION.table, DEVELOPMENT.metadata, EVALUATION.metadata)


class Clip(NamedTuple):
    """One clip as the tables have it.

    Attributes:
        name: its Freesound id, `fname` in the tables.
        file: path relative to the corpus: `FSD50K.dev_audio/64760.wav`.
        split: train or validation (dev.csv's train and val), or test (eval.csv).
        labels: positions in the vocabulary, at least one.
        uploader: who put it on Freesound.
    """

    name: str
    file: str
    split: str
    labels: tuple[int, ...]
    uploader: str


@dataclass(frozen=True)
class Layout:
    """A folder in the published layout.

    Attributes:
        classes: names in the order of the vocabulary: 200 of them in the published corpus.
        clips: in the order of dev.csv, then eval.csv.
        digests: SHA-256 of each table, by its published path, so that a change of any is seen.
    """

    root: Path
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    digests: dict[str, str]


def read_layout(data_path: str | Path, anno_dir: str | Path | None = None) -> Layout:
    """Read the tables of a folder with `FSD50K.{dev,eval}_audio`, `FSD50K.ground_truth` and `FSD50K.metadata`.

    `anno_dir` is another folder with vocabulary.csv, dev.csv and eval.csv, such as labels of one's own.

    Raises:
        CorpusError: something of the layout lacks, a label is not in the vocabulary, a clip has no uploader or is
            listed twice. Whether a clip's audio is there is not looked at.
    """
    root = Path(data_path).expanduser()
    annotations = root / GROUND_TRUTH if anno_dir is None else Path(anno_dir).expanduser()
    is_annotation = {name: Path(name).parent.name == GROUND_TRUTH for name in TABLES}
    tables = {name: annotations / Path(name).name if is_annotation[name] else root / name for name in TABLES}
    lacks = [_relative(path, root) for path in tables.values() if not path.is_file()]
    lacks += [part.audio for part in (DEVELOPMENT, EVALUATION) if not (root / part.audio).is_dir()]
    if lacks:
        raise CorpusError(f"data: {data_path} is not an FSD50K folder: it lacks {', '.join(lacks)}")
    classes = _read_vocabulary(tables[VOCABULARY])
    clips = tuple(clip for part in (DEVELOPMENT, EVALUATION) for clip in _read_clips(root, tables, part, classes))
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise CorpusError(f"{root}: dev.csv and eval.csv list more than once: {first_names(twice)}")
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in tables.items()}
    return Layout(root, tuple(classes), clips, digests)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Read positions by class name. The file has no header; a row is position, name, AudioSet's id."""
    rows = [row for _, row in read_rows(path)]
    for position, row in enumerate(rows):
        if len(row) != 3 or row[0] != str(position):
            raise CorpusError(f"{path}: row {position} is {row}, not {position}, a class and its id")
    classes = {row[1]: position for position, row in enumerate(rows)}
    if not rows or len(classes) < len(rows):
        raise CorpusError(f"{path}: {len(rows)} rows name {len(classes)} classes; each is named once")
    return classes


def _read_clips(root: Path, tables: dict[str, Path], part: Part, classes: dict[str, int]) -> Iterator[Clip]:
    table = tables[part.table]
    metadata = _read_metadata(root / part.metadata)
    there = files_by_clip(root, part)
    for number, row in read_columns(table, part.columns):
        name = row["fname"]
        split = row["split"] if part is DEVELOPMENT else "test"
        if part is DEVELOPMENT and split not in OFFICIAL:
            raise CorpusError(f"{table}: clip {name} is of split {split!r}; the splits are {', '.join(OFFICIAL)}")
        labels = [label.strip() for label in row["labels"].split(",")]
        if unknown := [label for label in labels if label not in classes]:
            raise CorpusError(
                f"{table}, line {number}: clip {name} has the label {unknown[0]!r}, which is not in {VOCABULARY}"
            )
        uploader = (metadata.get(name) or {}).get("uploader")
        if not uploader:
            raise CorpusError(f"{root / part.metadata}: clip {name} has no uploader there")
        yield Clip(
            name=name,
            file=there.get(name_key(name), f"{part.audio}/{name}.wav"),
            split=OFFICIAL.get(split, split),
            labels=tuple(sorted({classes[label] for label in labels})),
            uploader=str(uploader),
        )


def files_by_clip(root: Path, part: Part) -> dict[str, str]:
    """Return the recordings that are there, relative to the corpus, by `name_key` of the clip's name."""
    if not (root / part.audio).is_dir():
        return {}
    return {name_key(Path(file).stem): file for file in list_recordings(root, part.audio, ".wav", {})}


def _read_metadata(path: Path) -> dict[str, Any]:
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise CorpusError(f"{path}: should map each clip to its title, uploader and so on")
    return metadata
