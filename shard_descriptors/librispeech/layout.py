"""A LibriSpeech folder in its published layout: subsets, speakers and utterances. Names only: no audio is opened.

    LibriSpeech/SPEAKERS.TXT
    LibriSpeech/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac

Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015; openslr.org/12.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.files import list_folders, list_recordings, name_key
from shard_descriptors.common.text import read_lines

# subset -> utterances in the published archive
SUBSETS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
SPEAKERS_FILE = "SPEAKERS.TXT"


class Utterance(NamedTuple):
    """One FLAC file.

    Attributes:
        file: path relative to the corpus, `train-clean-100/103/1240/103-1240-0000.flac`.
        speaker, chapter: numbers as the folders are called, `103` and `1240`.
    """

    file: str
    speaker: str
    chapter: str

    @property
    def name(self) -> str:
        """Name of the utterance, such as `103-1240-0000`."""
        return Path(self.file).stem


class Speaker(NamedTuple):
    """A reader, as SPEAKERS.TXT describes them.

    Attributes:
        sex: F or M.
        subset: the one subset that all of the reader's utterances are in.
        minutes: of speech in the corpus.
    """

    sex: str
    subset: str
    minutes: float
    name: str


def read_librispeech(
    root: str | Path, subsets: Iterable[str] = tuple(SUBSETS), left_out: dict[str, str] | None = None
) -> dict[str, tuple[Utterance, ...]]:
    """Read the utterances of the subsets that are there, by the numbers of speakers, chapters and utterances.

    A subset's folder may be in capitals, and incomplete: `SUBSETS` tells how many utterances the published one has.
    Files that are no recordings are passed over; recordings that cannot be taken (see `list_recordings`) are put into
    `left_out` with the reason.

    Raises:
        CorpusError: no such folder, none of the subsets in it, a file that is called otherwise, or a speaker in two
            subsets, who in LibriSpeech has one.
    """
    root = Path(root).expanduser()
    wanted = list(subsets)
    if unknown := [subset for subset in wanted if subset not in SUBSETS]:
        raise CorpusError(f"LibriSpeech has no subset {unknown[0]!r}; the subsets are {', '.join(SUBSETS)}")
    if not root.is_dir():
        raise CorpusError(f"there is no LibriSpeech folder {root}")
    left_out = {} if left_out is None else left_out
    folders = _subset_folders(root)
    found = {subset: _read_subset(root, folders[subset], left_out) for subset in wanted if subset in folders}
    found = {subset: utterances for subset, utterances in found.items() if utterances}
    if not found:
        raise CorpusError(
            f"{root} is not a LibriSpeech folder: none of its subsets ({', '.join(wanted)}) is there with a file "
            f"<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac"
        )
    _check_speakers(root, found)
    return found


def read_speakers(root: str | Path) -> dict[str, Speaker]:
    """Read SPEAKERS.TXT: ID | SEX | SUBSET | MINUTES | NAME, with comments after a semicolon at the line's start."""
    path = Path(root).expanduser() / SPEAKERS_FILE
    if not path.exists():
        raise CorpusError(f"{path} is not there; the archives of LibriSpeech have it beside their subset")
    speakers = {}
    for number, line in read_lines(path):
        if line.startswith(";"):
            continue
        fields = [field.strip() for field in line.split("|", maxsplit=4)]  # a name may have a bar in it
        try:
            speaker, sex, subset, minutes, name = fields
            speakers[speaker] = Speaker(sex, subset, float(minutes), name)
        except ValueError:
            raise CorpusError(f"{path}, line {number}: {line!r} should be ID | SEX | SUBSET | MINUTES | NAME") from None
    return speakers


def _subset_folders(root: Path) -> dict[str, str]:
    folders: dict[str, str] = {}
    for folder in list_folders(root):
        first = folders.setdefault(name_key(folder), folder)
        if first != folder and name_key(folder) in SUBSETS:
            raise CorpusError(f"{root} has the subset {name_key(folder)} twice, in {first} and in {folder}: keep one")
    return folders


def _read_subset(root: Path, folder: str, left_out: dict[str, str]) -> tuple[Utterance, ...]:
    utterances = []
    for speaker in list_folders(root / folder):
        for chapter in list_folders(root / folder / speaker):
            for file in list_recordings(root, f"{folder}/{speaker}/{chapter}", ".flac", left_out):
                numbers = Path(file).stem.split("-")
                if numbers[:-1] != [speaker, chapter] or not all(number.isdecimal() for number in numbers):
                    raise CorpusError(
                        f"{root / file}: an utterance of LibriSpeech is called "
                        f"<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac"
                    )
                utterances.append(Utterance(file, speaker, chapter))
    return tuple(sorted(utterances, key=_numbers))


def _numbers(utterance: Utterance) -> tuple[int, ...]:
    return tuple(int(number) for number in utterance.name.split("-"))


def _check_speakers(root: Path, found: Mapping[str, tuple[Utterance, ...]]) -> None:
    subset_of: dict[str, str] = {}
    for subset, utterances in found.items():
        for utterance in utterances:
            other = subset_of.setdefault(utterance.speaker, subset)
            if other != subset:
                raise CorpusError(
                    f"{root}: speaker {utterance.speaker} is in {other} and in {subset}, "
                    f"and a speaker of LibriSpeech is in one subset only"
                )
