"""Speech Commands as SUPERB's keyword spotting reads it: which clips are in which split, under which of 12 labels.

Here are names only: no audio is opened, so a complete corpus is counted in a second or two, once per process.
"""

import logging
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shard_descriptors.common.audio import AudioSource, audio_problem
from shard_descriptors.common.errors import CorpusError, first_names
from shard_descriptors.common.files import list_folders, list_recordings, name_key
from shard_descriptors.common.text import read_lines

logger = logging.getLogger(__name__)

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
LABELS = (*KEYWORDS, "_silence_", "_unknown_")  # the order of SUPERB's class labels, and so of a model's outputs
SILENCE = LABELS.index("_silence_")
UNKNOWN = LABELS.index("_unknown_")
SPLITS = ("train", "validation", "test")

NOISE_FOLDER = "_background_noise_"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
HUB_FILES = "ks/*.parquet"
TEST_SET = "speech_commands_test_set_"  # followed by the version: the published 12-class test set


class Counts(NamedTuple):
    """Clips per split."""

    train: int
    validation: int
    test: int

    def __str__(self) -> str:
        return f"{self.train:,} / {self.validation:,} / {self.test:,}"


# Word clips in the folder -> (version, what SUPERB's splits of it count). A noise file is one train clip: v0.01 has
# 51,088 + 6, v0.02 has 105,829 - 9,981 - 11,005 + 6. The test sets are published apart, with 3,081 and 4,890 clips.
PUBLISHED = {64_721: ("v0.01", Counts(51_094, 6_798, 3_081)), 105_829: ("v0.02", Counts(84_849, 9_981, 4_890))}


@dataclass(frozen=True, slots=True)
class Clip:
    """One item of a split, not yet opened.

    Attributes:
        file: path relative to the corpus, as in the published lists: `yes/0a7c2a8d_nohash_0.wav`.
        label: position in LABELS.
        speaker: who speaks; empty for silence.
        start: which second of a longer recording to take, from 0.0 (the first) to 1.0 (the last); None: draw it.
        row: where the audio lies in the table of a corpus from the hub.
    """

    file: str
    label: int
    speaker: str = ""
    start: float | None = 0.0
    row: int = -1


@dataclass(frozen=True, eq=False)  # equal is the same: all shards of a process share one, and are kept by it
class Corpus:
    """The clips of each split, and where their audio is: in a folder, or in a table from the hub."""

    splits: Mapping[str, tuple[Clip, ...]]
    version: str | None  # of the complete published corpus; None: this is not a complete one
    missing: tuple[str, ...] = ()  # named in the lists, but not there
    unlisted: Mapping[str, str] = field(default_factory=dict)  # recording that is in no split -> reason, by its name
    name: str = ""  # its folder, or its name on the hub
    table: Any = None  # datasets.Dataset with the column audio, not decoded; None: the audio lies in the folder
    _problems: dict[str | int, str | None] = field(default_factory=dict, repr=False)
    _told: set[str] = field(default_factory=set, repr=False)

    @property
    def counts(self) -> Counts:
        return Counts(*(len(self.splits[split]) for split in SPLITS))

    def source(self, clip: Clip) -> AudioSource:
        """Return what `audio.py` reads this clip from."""
        if self.table is None:
            return Path(self.name, clip.file)
        audio = self.table[clip.row]["audio"]
        return audio["path"] if audio["bytes"] is None else audio["bytes"]

    def problem(self, clip: Clip) -> str | None:
        """Return what the header shows to be wrong with a clip's file, or None. Each is looked at once per process."""
        key = clip.file if self.table is None else clip.row
        if key not in self._problems:
            self._problems[key] = audio_problem(self.source(clip))
        return self._problems[key]

    def problems(self, clips: Iterable[Clip]) -> dict[str, str]:
        """Return the files that are no usable audio, with the reason. A warning names each once per process."""
        found = {clip.file: problem for clip in clips if (problem := self.problem(clip)) is not None}
        reasons = [f"{file} {reason}" for file, reason in found.items() if file not in self._told]
        if reasons:
            logger.warning("%s: left out %s: %s", self.name, count_files(len(reasons)), first_names(reasons))
            self._told.update(found)
        return found


def read_corpus(data_path: str | Path, seed: int) -> Corpus:
    """Read a Speech Commands folder, a copy of the hub's dataset, or a dataset on the hub.

    It is read once per process: the next call gives the same object, which must not be changed. A folder is read again
    when files were added, removed or renamed in it or a list was edited, and the old object stays as it was. A
    recording that is overwritten in place, or a dataset on the hub that changes, is not noticed.
    """
    root = Path(data_path).expanduser()
    if root.is_dir():
        return _read_once(str(root.resolve()), seed, _stamp(root.resolve()))
    if root.exists():
        raise CorpusError(f"data_path: {data_path} is a file, not a folder")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(data_path)):
        return _read_once(str(data_path), seed, stamp=None)
    raise CorpusError(f"data_path: there is no folder {data_path}")


def read_folder(root: Path, seed: int) -> Corpus:
    """Read a folder in the layout of v0.01 and v0.02.

    Each noise file is one train clip of `_silence_`, every word that is no keyword is `_unknown_`. The test split is
    the published test set (`speech_commands_test_set_v0.01` with a folder for each of the 12 labels) if it lies in the
    folder or beside it. Otherwise the test split is made as that one was: the keyword clips of testing_list.txt, and a
    tenth as many clips (rounded up) of `_unknown_`, drawn from that list by the seed, and of `_silence_`, seconds at
    fixed places of the noise files.
    """
    root = root.resolve()
    unlisted: dict[str, str] = {}
    words, noise = _scan(root, unlisted)
    listed = {split: _read_list(root / name) for split, name in LISTS.items()}
    if twice := sorted(listed["validation"].keys() & listed["test"]):
        raise CorpusError(f"{root}: {LISTS['validation']} and {LISTS['test']} both name {first_names(twice)}")

    split_of = {key: split for split, keys in listed.items() for key in keys}
    of_split: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for file in words:
        of_split[split_of.get(name_key(file), "train")].append(_word_clip(file))
    train, validation, testing = of_split.values()
    there = {name_key(file) for file in words}
    for split, name in LISTS.items():
        _check_held_out(root / name, {key: line for key, line in listed[split].items() if key not in there}, train)
    missing = sorted(entry for of_list in listed.values() for key, entry in of_list.items() if key not in there)
    train += [Clip(file, SILENCE, start=None) for file in noise]
    _check_speakers(train + validation)

    version, published = PUBLISHED.get(len(words), (None, None))
    test_set = _find_test_set(root, version)
    test = _make_test(testing, noise, seed) if test_set is None else _read_test_set(root, test_set, unlisted)
    corpus = Corpus(
        splits={"train": tuple(train), "validation": tuple(validation), "test": tuple(test)},
        version=version,
        missing=tuple(missing),
        unlisted=unlisted,
        name=str(root),
    )
    if published is not None and corpus.counts != published:
        raise CorpusError(
            f"{root} has the {len(words):,} word clips of Speech Commands {version}, but its splits count "
            f"{corpus.counts} where {published} is published (train / validation / test): "
            f"the lists, the noise files or the test set were changed"
        )
    return corpus


def read_hub(name: str) -> Corpus:
    """Read SUPERB's `ks` from the hub, from its cache, or from a folder with a copy (README.md and ks/*.parquet).

    It comes with its own test split, and like the folder with whole noise files as train clips of `_silence_`.
    """
    import datasets

    data = _load_hub(name)
    splits: dict[str, list[Clip]] = {}
    tables: list[datasets.Dataset] = []
    for split in SPLITS:
        if split not in data:
            raise CorpusError(f"data_path: {name} is not SUPERB's ks: it lacks the split {split}")
        lacks = sorted({"file", "audio", "label"}.difference(data[split].column_names))
        if lacks:
            raise CorpusError(f"data_path: {name} is not SUPERB's ks: split {split} lacks {', '.join(lacks)}")
        first_row = sum(len(table) for table in tables)
        splits[split] = _hub_clips(data[split], first_row, cut_silence=split == "train")
        # Decoded by audio.py: the decoder of `datasets` needs torchcodec and FFmpeg.
        tables.append(data[split].select_columns("audio").cast_column("audio", datasets.Audio(decode=False)))

    _check_speakers(splits["train"] + splits["validation"])
    counts = Counts(*(len(table) for table in tables))
    version = next((version for version, published in PUBLISHED.values() if published == counts), None)
    shared = {split: tuple(clips) for split, clips in splits.items()}
    return Corpus(splits=shared, version=version, name=name, table=datasets.concatenate_datasets(tables))


def count_files(count: int) -> str:
    """Return the count with its noun, such as "3 files"."""
    return f"{count:,} file{'s' if count > 1 else ''}"


# A process has one corpus, or a few; a folder that keeps changing may not fill the memory.
@lru_cache(maxsize=4)
def _read_once(name: str, seed: int, stamp: Hashable) -> Corpus:
    root = Path(name)
    is_hub = stamp is None or any(root.glob(HUB_FILES))
    corpus = read_hub(name) if is_hub else read_folder(root, seed)
    if corpus.missing:
        missing = f"{count_files(len(corpus.missing))} not there: {first_names(corpus.missing)}"
        logger.warning("%s: its lists name %s", name, missing)
    if corpus.unlisted:
        reasons = [f"{file} {reason}" for file, reason in corpus.unlisted.items()]
        logger.warning("%s: passed over %s: %s", name, count_files(len(reasons)), first_names(reasons))
    speakers = {split: {clip.speaker for clip in clips} - {""} for split, clips in corpus.splits.items()}
    for split, others in (("validation", ("train",)), ("test", ("train", "validation"))):
        shared = sorted(speakers[split] & set().union(*(speakers[other] for other in others)))
        if shared:
            also = " or ".join(others)
            logger.warning("%s: %d %s speakers are in %s too: %s", name, len(shared), split, also, first_names(shared))
    return corpus


def _stamp(root: Path) -> Hashable:
    """Return the times of folders and lists that `read_folder` and `read_hub` look at, but not of each recording."""
    test_sets = [*root.glob(f"{TEST_SET}*"), *root.parent.glob(f"{TEST_SET}*")]
    folders = [root, *sorted(path for path in (*test_sets, root / Path(HUB_FILES).parent) if path.is_dir())]
    places = [path for folder in folders for path in (folder, *sorted(folder.iterdir()))]
    return tuple((str(path), path.stat().st_mtime_ns) for path in places if path.exists())


def _scan(root: Path, unlisted: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the word clips and the noise files, sorted; raises if this is not the published layout."""
    if not any(root.iterdir()):
        raise CorpusError(f"data_path: the folder {root} is empty")
    folders = list_folders(root)
    lacks = [name for name in LISTS.values() if not (root / name).is_file()]
    noise = _wav_files(root, NOISE_FOLDER, unlisted) if NOISE_FOLDER in folders else []
    if not noise:
        lacks.append(f"{NOISE_FOLDER}/*.wav")
    if not set(KEYWORDS).intersection(map(name_key, folders)):
        lacks.append(f"a folder of any keyword ({', '.join(KEYWORDS)})")
    if lacks:
        raise CorpusError(f"data_path: {root} is not a Speech Commands folder: it lacks {'; '.join(lacks)}")
    words = [name for name in folders if not name.startswith("_")]  # a test set in here has no files of its own
    return [file for word in words for file in _wav_files(root, word, unlisted)], noise


def _wav_files(root: Path, folder: str, unlisted: dict[str, str]) -> list[str]:
    return list_recordings(root, folder, ".wav", unlisted)


def _read_list(path: Path) -> dict[str, str]:
    """Read the clips that a list names, <word>/<file> as it is written there, by `name_key`.

    A list may have been written with backslashes, or with a path before the word. A line that names no clip is refused:
    it is unknown what it should have held out.
    """
    clips = {}
    for number, line in read_lines(path):
        parts = line.replace("\\", "/").split("/")
        if len(parts) < 2 or not all(parts[-2:]):
            raise CorpusError(f"{path}, line {number}: {line!r} should be <word>/<speaker>_nohash_<number>.wav")
        clip = "/".join(parts[-2:])
        clips[name_key(clip)] = clip
    if not clips:
        logger.warning("%s is empty: it holds out no clip", path)
    return clips


def _check_held_out(path: Path, missing: Mapping[str, str], train: Iterable[Clip]) -> None:
    """Raise if a list names a clip that is not there and whose speaker trains: it may be there by another name.

    The published lists hold out whole speakers, so a part of the corpus lacks clips of the lists, and this never holds.
    """
    trained = {clip.speaker for clip in train}
    for clip in missing.values():
        speaker = _speaker(clip)
        if not speaker or speaker in trained:
            why = f"clips of {speaker} train" if speaker else "no speaker is named by it"
            raise CorpusError(
                f"{path} names {clip!r}, which is not there, and {why}: a clip that should be held out may be there "
                f"by another name; mend the list"
            )


def _word_clip(file: str) -> Clip:
    word = name_key(file.split("/")[0])
    return Clip(file, LABELS.index(word) if word in KEYWORDS else UNKNOWN, _speaker(file))


def _speaker(file: str) -> str:
    """Return who speaks a clip <speaker>_nohash_<number>.wav; "" where no speaker is named."""
    speaker, mark, _ = name_key(file.split("/")[-1]).partition("_nohash_")
    return speaker if mark else ""


def _check_speakers(clips: list[Clip]) -> None:
    """Check that clips that are divided among nodes name their speakers; a test set may name its files as it likes."""
    nameless = [clip.file for clip in clips if clip.label != SILENCE and not clip.speaker]
    if nameless:
        names = first_names(nameless)
        raise CorpusError(
            f"data_path: a clip is called <speaker>_nohash_<number>.wav, but no speaker is named by {names}"
        )


def _find_test_set(root: Path, version: str | None) -> Path | None:
    for place in (root, root.parent):
        found = sorted(path for path in place.glob(f"{TEST_SET}{version or '*'}") if path.is_dir())
        if len(found) > 1:
            names = first_names(path.name for path in found)
            raise CorpusError(f"{place} has {names}: keep the one that goes with {root.name}")
        if found:
            return found[0]
    return None


def _read_test_set(root: Path, test_set: Path, unlisted: dict[str, str]) -> list[Clip]:
    lacks = [label for label in LABELS if not (test_set / label).is_dir()]
    if lacks:
        raise CorpusError(f"{test_set} is not a published test set: it lacks the folders {first_names(lacks)}")
    prefix = test_set.name if test_set.parent == root else f"../{test_set.name}"
    return [
        Clip(file, label, "" if label == SILENCE else _speaker(file))
        for label, folder in enumerate(LABELS)
        for file in _wav_files(root, f"{prefix}/{folder}", unlisted)
    ]


def _make_test(testing: list[Clip], noise: list[str], seed: int) -> list[Clip]:
    keywords = [clip for clip in testing if clip.label != UNKNOWN]
    unknown = [clip for clip in testing if clip.label == UNKNOWN]
    # Rounded up as in the published sets: 2,567 keyword clips have 257 of each of the others, 4,074 have 408.
    others = -(-len(keywords) // len(KEYWORDS))
    chosen = np.random.default_rng(seed).permutation(len(unknown))[:others]
    return keywords + [unknown[i] for i in sorted(chosen)] + _silence(noise, others)


def _silence(noise: list[str], clips: int) -> list[Clip]:
    """Return seconds evenly spread over the noise files."""
    per_file = -(-clips // len(noise))
    return [Clip(noise[i % len(noise)], SILENCE, start=(i // len(noise) + 0.5) / per_file) for i in range(clips)]


def _load_hub(name: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, "ks")
    except Exception as error:  # offline, unknown, no such configuration, broken: many classes, one way out
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if Path(name).is_dir():
            message = f"{name} has {HUB_FILES}, but is no copy of SUPERB's dataset with its README.md ({reason})"
        else:
            message = (
                f"{name} is no folder here, and the Hugging Face hub did not give a dataset of that name ({reason}). "
                f"On a connected machine run `hf download {name} --repo-type dataset --include 'ks/*' "
                f"--include README.md --local-dir superb` and copy that folder here, or give a Speech Commands folder"
            )
        raise CorpusError(f"data_path: {message}") from error


def _hub_clips(table: Any, first_row: int, cut_silence: bool) -> list[Clip]:
    names = table.features["label"].names
    strange = sorted(set(names).difference(LABELS))
    if strange:
        raise CorpusError(f"the labels {first_names(strange)} are none of SUPERB's: {', '.join(LABELS)}")
    clips = []
    for row, (path, code) in enumerate(zip(table["file"], table["label"], strict=True), start=first_row):
        file = "/".join(Path(path).parts[-2:])
        label = LABELS.index(names[code])  # by name: the order of another copy may differ
        if label == SILENCE:
            clips.append(Clip(file, label, start=None if cut_silence else 0.0, row=row))
        else:
            clips.append(Clip(file, label, _speaker(file), row=row))
    return clips
