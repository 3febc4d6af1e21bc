"""The folder that a LibriFSD50K or FedWHAM preparation writes and a shard reads: pairs of speech and noise by speaker.

    <store>/chunks.csv                                           one row per pair of files; written last
    <store>/report.json                                          what is in it, what was left out and why
    <store>/{train,val,test}/<speaker>/speech/<pair>_<chunk>_id_<utterance>.wav
    <store>/{train,val,test}/<speaker>/noise/<pair>_<chunk>_<label>_id_<clip>.wav

The audio lies as FedEnhance's recipe puts it (Tzinis et al., WASPAA 2021; github.com/etzinis/fedenhance), so that its
own loader reads it too. The table and the report are ours.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from openfl_audio.files import replacing
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.files import write_json
from shard_descriptors.common.preparing import JOURNAL, do_the_rest, open_journal
from shard_descriptors.common.text import read_json, read_rows

SAMPLE_RATE = 16_000
CHUNK_SAMPLES = 64_000  # 4 s
FOLDERS = {"train": "train", "validation": "val", "test": "test"}  # split -> its folder
MIN_PAIRS = 2  # of a split: one is mixed, and the other's noise is the second noise
TABLE = "chunks.csv"
REPORT = "report.json"


class Pair(NamedTuple):
    """A recording of speech and one of noise that will be mixed with each other.

    Attributes:
        number: from 0, among the pairs of its speaker.
        speech, noise: paths relative to the roots of the plan.
        label: a name for the kind of noise; "" if there is none.
    """

    split: str
    speaker: str
    number: int
    speech: str
    noise: str
    label: str = ""

    @property
    def folder(self) -> str:
        """Folder of the pair, relative to the store."""
        return f"{FOLDERS[self.split]}/{self.speaker}"


@dataclass(frozen=True)
class Plan:
    """Pairs that a preparation is going to write.

    Attributes:
        left_out: reason -> files of the sources that are in no pair.
        notes: sentences about how the splits were made, for the report.
    """

    corpus: str
    speech_root: Path
    noise_root: Path
    pairs: tuple[Pair, ...]
    left_out: Mapping[str, Sequence[str]]
    notes: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the pairs, the same wherever their sources lie."""
        return hashlib.sha256(json.dumps([self.corpus, self.pairs]).encode()).hexdigest()


@dataclass(frozen=True)
class Written:
    """The outcome of one pair.

    Attributes:
        files: (speech, noise) of each chunk, relative to the store.
        padded: "speech" and "noise", as far as they were shorter than a chunk and end in zeros.
        scaled_down: the same, as far as they went beyond full scale.
        left_out: reason -> files.
    """

    files: list[tuple[str, str]] = field(default_factory=list)
    padded: list[str] = field(default_factory=list)
    scaled_down: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)


class Chunk(NamedTuple):
    """A row of the table: two files relative to the store, of the same pair of recordings."""

    split: str
    speaker: str
    pair: int
    speech: str
    noise: str

    @property
    def clip(self) -> str:
        """The name of the recording of noise, which other pairs may have too."""
        return Path(self.noise).stem.rpartition("_id_")[2]


@dataclass(frozen=True, eq=False)  # equal is the same: all shards of a process share one
class Store:
    """A folder of pairs, with the rows of its table."""

    root: Path
    chunks: tuple[Chunk, ...]  # pairs of a speaker together, in the order of their numbers


def read_store(data_path: str | Path) -> Store:
    """Read the table of a store. It is read once per process, and again when it has changed; no audio is opened."""
    if not isinstance(data_path, str | Path) or not str(data_path):
        raise CorpusError(f"data_path: {data_path!r} should be a folder")
    root = Path(data_path).expanduser()
    table = root / TABLE
    if not root.is_dir():
        raise CorpusError(f"data_path: there is no folder {data_path}")
    if not table.is_file():
        begun = (root / JOURNAL).is_file()
        what = "was not prepared to the end: run its preparation again, it resumes" if begun else "is no such store"
        raise CorpusError(
            f"data_path: {data_path} {what}; openfl-audio data prepare librifsd50k (or fedwham) writes one with {TABLE}"
        )
    return _read_once(root.resolve(), table.stat().st_mtime_ns)


def write_store(
    out: Path, plan: Plan, write: Callable[[Plan, Pair, Path], Written], workers: int = 1
) -> dict[str, Any]:
    """Write all pairs of a plan, then the table and the report.

    Each pair that is done is noted in a journal, so that a run that was killed resumes where it was. A store that is
    complete is left as it is. Threads do the work: decoding, resampling and writing release the interpreter.

    Returns:
        the report, see `report.json`.

    Raises:
        CorpusError: `out` holds something else, or a split ends up with fewer than `MIN_PAIRS` pairs.
    """
    if workers < 1:
        raise CorpusError(f"workers: {workers} should be a whole number from 1 on")
    if (out / REPORT).is_file():
        report = read_json(out / REPORT)
        _check_same_plan(out, report.get("plan"), plan)
        return report
    journal = open_journal(out, {"plan": plan.fingerprint})
    _check_same_plan(out, journal[0]["plan"], plan)
    results = do_the_rest(
        journal,
        "pair",
        range(len(plan.pairs)),
        lambda number: asdict(write(plan, plan.pairs[number], out)),
        fault="left_out",
        workers=workers,
        description=f"Writing {plan.corpus}",
    )
    written = [Written(**result) for result in results.values()]
    report = _report(plan, written)
    if few := [split for split, counts in report["splits"].items() if counts["pairs"] < MIN_PAIRS]:
        reasons = "; ".join(f"{of['count']:,} {reason}" for reason, of in report["left_out"].items())
        raise CorpusError(
            f"{out}: {few[0]} has {report['splits'][few[0]]['pairs']} pairs of speech and noise, and {MIN_PAIRS} are "
            f"needed: one for a second noise; left out: {reasons or 'nothing'}"
        )
    rows = [
        Chunk(pair.split, pair.speaker, pair.number, *files)
        for pair, of_pair in zip(plan.pairs, written, strict=True)
        for files in of_pair.files
    ]
    # The table says that all files are whole: they are on the disk before it is. One by one, that would take an hour.
    os.sync()
    with replacing(out / TABLE, durable=True) as path, path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([Chunk._fields, *rows])
    write_json(out / REPORT, report)
    (out / JOURNAL).unlink()
    return report


def summarize(report: Mapping[str, Any]) -> list[str]:
    """Return what a report says, in lines for a terminal."""
    lines = list(report["notes"])
    lines += [
        f"{split}: {counts['chunks']:,} chunks in {counts['pairs']:,} pairs of {counts['speakers']:,} speakers"
        for split, counts in report["splits"].items()
    ]
    return lines + [f"left out {of['count']:,}: {reason}" for reason, of in report["left_out"].items()]


# A process has one store, or a few: the speech to enhance, and the one that a model was trained on before.
@lru_cache(maxsize=4)
def _read_once(root: Path, changed_ns: int) -> Store:
    path = root / TABLE
    rows = read_rows(path)
    if not rows or tuple(rows[0][1]) != Chunk._fields:
        raise CorpusError(f"{path}: its first line should be {','.join(Chunk._fields)}")
    chunks = []
    for number, row in rows[1:]:
        try:
            split, speaker, pair, speech, noise = row
            chunks.append(Chunk(split, speaker, int(pair), speech, noise))
        except ValueError:
            raise CorpusError(f"{path}, line {number}: {row} should be {','.join(Chunk._fields)}") from None
        if split not in FOLDERS:
            raise CorpusError(f"{path}, line {number}: {split!r} is no split; the splits are {', '.join(FOLDERS)}")
    return Store(root, tuple(chunks))


def _check_same_plan(out: Path, fingerprint: str | None, plan: Plan) -> None:
    if fingerprint != plan.fingerprint:
        raise CorpusError(
            f"{out} was prepared from other recordings or with another seed: remove it or choose another folder"
        )


def _report(plan: Plan, written: Sequence[Written]) -> dict[str, Any]:
    left_out = {reason: list(files) for reason, files in plan.left_out.items() if files}
    splits = {}
    for split in FOLDERS:
        of_split = [(pair, w) for pair, w in zip(plan.pairs, written, strict=True) if pair.split == split and w.files]
        splits[split] = {
            "speakers": len({pair.speaker for pair, _ in of_split}),
            "pairs": len(of_split),
            "chunks": sum(len(w.files) for _, w in of_split),
            **{
                f"{what}_{which}": sum(which in getattr(w, what) for _, w in of_split)
                for what in ("padded", "scaled_down")
                for which in ("speech", "noise")
            },
        }
    for of_pair in written:
        for reason, files in of_pair.left_out.items():
            left_out.setdefault(reason, []).extend(files)
    return {
        "corpus": plan.corpus,
        "plan": plan.fingerprint,
        "notes": list(plan.notes),
        "splits": splits,
        "left_out": {reason: {"count": len(files), "files": files} for reason, files in left_out.items()},
    }
