"""Recordings of a site's own: which of them are in which split, on which node, and which are left out.

A table or a folder of a site is read into a `Listing`; all that follows is the same for both, and is here. Names and
headers only: nothing is decoded, unless a recording is cut into windows and its header does not tell its length.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from shard_descriptors.common.audio import AudioSource, EncodedAudio, audio_problem, duration_s
from shard_descriptors.common.errors import AudioError, CorpusError, first_names
from shard_descriptors.common.files import AUDIO_SUFFIXES, SYSTEM_FOLDERS, name_key, printable
from shard_descriptors.common.partition import by_clip, by_speaker, split_by_group

SPLITS = ("train", "validation", "test")
# What people call them, by `name_key`.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# A recording has one label, several, a number, or a text.
KINDS = ("label", "labels", "number", "text")
Target = str | tuple[str, ...] | float


@dataclass(frozen=True)
class StoredRecording:
    """A recording that is no file of its own: its bytes are in a row of a dataset, which are read when they are needed.

    Attributes:
        dataset: gives the row, with {"bytes": ...} in the column.
        column, row: where it is.
        fingerprint: of the dataset: two of the same are the same.
        size_bytes: of the encoded audio.
        file_name: that it had, "" where that is unknown.
    """

    dataset: Any = field(compare=False, repr=False)
    column: str
    row: int
    fingerprint: str
    size_bytes: int
    file_name: str

    def read(self) -> EncodedAudio:
        """Return the encoded audio."""
        return EncodedAudio(self.dataset[self.row][self.column]["bytes"], self.file_name)


@dataclass(frozen=True, slots=True)
class Recording:
    """One item of a split, not yet opened.

    Attributes:
        name: the file, as the site calls it.
        file: where it is: a path, or a place in a dataset.
        target: its label, several, a number or a text, as the kind of its listing says.
        group: the speaker, patient or device; "" where it is unknown.
        split: one of SPLITS; "" where it is still to be chosen.
        start_s, end_s: the part of the file that is meant; an `end_s` of None is the end of the file.
    """

    name: str
    file: Path | StoredRecording
    target: Target
    group: str = ""
    split: str = ""
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def source(self) -> AudioSource:
        """The source that the audio is decoded from: the path, or its bytes."""
        return source_of(self.file)

    @property
    def classes(self) -> tuple[str, ...]:
        """Its labels; numbers and texts have none."""
        if isinstance(self.target, tuple):
            return self.target
        return (self.target,) if isinstance(self.target, str) else ()


@dataclass
class Listing:
    """The recordings that a table or a folder names.

    Attributes:
        name: the table or the folder.
        kind: what the targets are, one of KINDS.
        recordings: those that are there.
        left_out: the reason, by the name of a recording (with its line, in a table).
        columns: the cells of a table by column, save that of the targets; an audit tells what they look like.
    """

    name: str
    kind: str
    recordings: list[Recording] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CorpusError(f"{self.name}: targets are {', '.join(KINDS)}, and not {self.kind!r}")


@dataclass(frozen=True)
class Division:
    """The recordings of all nodes by split, and what was noticed on the way.

    Attributes:
        splits: recordings by split, all of SPLITS.
        left_out: the reason, by the name of a recording.
        shared_groups: groups that the site's own split has in several splits.
        duplicates: recordings with the content of another, by name, with the other's name.
    """

    splits: Mapping[str, tuple[Recording, ...]]
    left_out: Mapping[str, str]
    shared_groups: tuple[str, ...]
    duplicates: Mapping[str, str]


def source_of(file: Path | StoredRecording) -> AudioSource:
    """Return what `common.audio` decodes."""
    return file if isinstance(file, Path) else file.read()


def find_audio(root: Path) -> Iterator[Path]:
    """Yield what looks like a recording below a folder, sorted, hidden files and folders of systems left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name.casefold() not in SYSTEM_FOLDERS
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.casefold() in AUDIO_SUFFIXES:
                yield Path(folder, name)


class FileFinder:
    """Finds files by the names that tables have for them, whatever their separators, case and Unicode form."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, Path] | None = None

    def find(self, name: str) -> Path | None:
        """Return the file called `name`, relative to the folder or absolute, or None."""
        path = self._root / name
        if path.is_file():
            return path
        if self._files is None:
            found: dict[str, Path] = {}
            for file in find_audio(self._root):
                found.setdefault(name_key(printable(str(file.relative_to(self._root)))), file)
            self._files = found
        return self._files.get(name_key(name).removeprefix("./"))


def read_split(name: str, where: str) -> str:
    """Return the split that people call `name`. Raises CorpusError, with `where` it stands."""
    split = SPLIT_NAMES.get(name_key(name))
    if split is None:
        raise CorpusError(f"{where}: {name!r} is no split; the splits are {', '.join(SPLITS)}")
    return split


def divide(
    listing: Listing, validation_share: float, test_share: float, seed: int, channel: int | None = None
) -> Division:
    """Give every recording a split, and leave out what cannot be used or would leak from one split into another.

    The site's own split is kept. Where it has no validation, or there is none, the share is taken out of train, so that
    no group is in two splits and the classes are in each split as they are in all. A recording whose content is in
    another split as well is left out of train, and one of validation that is in test, of validation. So is one without
    the wanted `channel`, which is counted from 1.
    """
    recordings = listing.recordings
    own = {recording.split for recording in recordings} - {""}
    if own and not all(recording.split for recording in recordings):
        raise CorpusError(f"{listing.name}: some recordings have a split and others have none")
    shares = {"validation": validation_share, "test": 0.0 if own else test_share}
    if "validation" in own:
        shares["validation"] = 0.0
    recordings = _make_splits(recordings, shares, seed)

    duplicates = find_duplicates(recordings)
    left_out = dict(listing.left_out)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for recording, key in zip(recordings, duplicates.keys, strict=True):
        splits_of[key].add(recording.split)
    splits: dict[str, list[Recording]] = {split: [] for split in SPLITS}
    for recording, key in zip(recordings, duplicates.keys, strict=True):
        later = [split for split in SPLITS[SPLITS.index(recording.split) + 1 :] if split in splits_of[key]]
        if problem := _problem(recording.file, channel, *_stamp(recording.file)):
            left_out[recording.name] = problem
        elif later:
            left_out[recording.name] = f"is in {later[-1]} as well, with the same content"
        else:
            splits[recording.split].append(recording)
    groups = {split: {recording.group for recording in of_split} - {""} for split, of_split in splits.items()}
    shared = Counter(group for of_split in groups.values() for group in of_split)
    return Division(
        splits={split: tuple(of_split) for split, of_split in splits.items()},
        left_out=left_out,
        shared_groups=tuple(sorted(group for group, count in shared.items() if count > 1)),
        duplicates=duplicates.first_of,
    )


@dataclass(frozen=True)
class Duplicates:
    """`keys` are the same for the same content, one for each recording; `first_of` names the first by a later one."""

    keys: Sequence[str]
    first_of: Mapping[str, str]


def find_duplicates(recordings: Sequence[Recording]) -> Duplicates:
    """Compare recordings by the bytes of their files; only files of one size are read."""
    stamps = {recording.file: _stamp(recording.file) for recording in recordings}
    count = Counter(size for size, _ in stamps.values())
    content = {file: _digest(file, *stamp) if count[stamp[0]] > 1 else str(file) for file, stamp in stamps.items()}
    keys = [f"{content[each.file]} {each.start_s} {each.end_s}" for each in recordings]
    first: dict[str, str] = {}
    first_of = {}
    for recording, key in zip(recordings, keys, strict=True):
        name = first.setdefault(key, recording.name)
        if name != recording.name:
            first_of[recording.name] = name
    return Duplicates(keys, first_of)


def cut_windows(recordings: Iterable[Recording], window_s: float, hop_s: float) -> list[Recording]:
    """Cut recordings into windows, from the beginning on; what is left at the end is a window of its own.

    A window that reaches over the end of its recording is shorter than the others: it is filled up with zeros when it
    is read. At the end one is made only where more than the overlap of two windows is left.

    >>> recording = Recording("a.wav", Path("a.wav"), "yes", start_s=1.0, end_s=6.0)
    >>> [(each.start_s, each.end_s) for each in cut_windows([recording], window_s=2.0, hop_s=2.0)]
    [(1.0, 3.0), (3.0, 5.0), (5.0, 6.0)]
    """
    windows = []
    for recording in recordings:
        end_s = duration_s(recording.source) if recording.end_s is None else recording.end_s
        start_s = recording.start_s
        while True:
            windows.append(replace(recording, start_s=start_s, end_s=min(start_s + window_s, end_s)))
            # Less than a microsecond is left by the rounding of decimal fractions.
            if start_s + window_s >= end_s - 1e-6:
                break
            start_s += hop_s
    return windows


def assign_nodes(recordings: Sequence[Recording], world_size: int, seed: int) -> list[int]:
    """Give each recording of a split a node, from 0: groups are not divided, and recordings without one are dealt out.

    With fewer groups than nodes the last nodes get none.
    """
    groups = [recording.group for recording in recordings if recording.group]
    known = set(groups)
    node_of = by_speaker(groups, min(world_size, len(known)), seed) if known else {}
    others = iter(by_clip(len(recordings) - len(groups), world_size, seed))
    return [node_of[each.group] if each.group else int(next(others)) for each in recordings]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression that finds the group in a name. Raises CorpusError for one that cannot."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CorpusError(f"group_pattern: {pattern!r} is no regular expression ({error})") from error
    if compiled.groups != 1:
        raise CorpusError(
            f"group_pattern: {pattern!r} should have one pair of brackets, around the speaker: '([^_]+)_'"
        )
    return compiled


def describe_left_out(left_out: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, with the number and the names of the recordings."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_out.items():
        by_reason[reason].append(name)
    return [f"{len(names):,} left out, as it {reason}: {first_names(names)}" for reason, names in by_reason.items()]


def window_problem(recording: Recording) -> str | None:
    """Return what is wrong with the part of a file that a recording is, or None."""
    if recording.end_s is not None and recording.end_s <= recording.start_s:
        return f"ends at {recording.end_s:g} s and starts at {recording.start_s:g} s"
    if recording.start_s:
        try:
            length_s = duration_s(recording.source)
        except AudioError:
            return None  # said by `divide`
        if recording.start_s >= length_s:
            return f"starts at {recording.start_s:g} s of a file of {length_s:.3f} s"
    return None


def _make_splits(recordings: Sequence[Recording], shares: Mapping[str, float], seed: int) -> list[Recording]:
    """Give recordings of train, and those without a split, one; `shares` are of the other splits."""
    free = [i for i, recording in enumerate(recordings) if recording.split in ("", "train")]
    # A recording without a group is a group of its own.
    groups = [recordings[i].group or f"\0{recordings[i].name}" for i in free]
    chosen = split_by_group(groups, [recordings[i].classes for i in free], shares, seed)
    with_split = list(recordings)
    for i, split in zip(free, chosen, strict=True):
        with_split[i] = replace(recordings[i], split=split)
    return with_split


# Many shards of a process read one folder; a file that changes is looked at again.
@lru_cache(maxsize=2**17)
def _digest(file: Path | StoredRecording, size: int, changed_ns: int) -> str:
    digest = hashlib.sha256()
    if isinstance(file, StoredRecording):
        return hashlib.sha256(file.read()).hexdigest()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=2**17)
def _problem(file: Path | StoredRecording, channel: int | None, size: int, changed_ns: int) -> str | None:
    return audio_problem(source_of(file), channel)


def _stamp(file: Path | StoredRecording) -> tuple[int, int]:
    if isinstance(file, StoredRecording):
        return file.size_bytes, 0
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
