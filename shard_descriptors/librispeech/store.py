"""The folder that a LibriSpeech preparation writes and a shard reads; the audio stays where it is.

librispeech.json                              where the audio is, how it was divided, what was left out and why
clips.csv                                     one row per utterance, split by split, client by client
targets/<name>/targets.json                   what k-means was fitted on; written last
targets/<name>/{train,validation}_<client>.i16, dev.i16, test.i16
                                              int16: the cluster of each frame, clip after clip as in clips.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.text import read_json, read_rows

SAMPLE_RATE = 16_000
HOP_LENGTH = 320  # samples between frames
FRAME_SAMPLES = 400  # that a frame sees
SPLITS = ("train", "validation", "dev", "test")
GLOBAL_SPLITS = {"dev": "dev-clean", "test": "test-clean"}  # the same on every node

REPORT = "librispeech.json"
TABLE = "clips.csv"
COLUMNS = ("split", "client", "speaker", "file", "num_samples", "duration_s", "transcript")
TARGETS = "targets"
TARGETS_INFO = "targets.json"
TARGET_TYPE = np.dtype("<i2")


def count_frames(num_samples: Any) -> Any:
    """Return the frames that HuBERT's convolutions make of so many samples, one number or an array of them.

    Kernels (10, 3, 3, 3, 3, 2, 2) with strides (5, 2, 2, 2, 2, 2, 2) see 400 samples every 320 (Hsu et al., "HuBERT",
    2021, arXiv 2106.07447, section II): floor((samples - 400) / 320) + 1, and none of less than 400.

    >>> count_frames(np.array([399, 400, 719, 720, 16_000]))
    array([ 0,  1,  1,  2, 49])
    """
    return np.maximum((num_samples - FRAME_SAMPLES) // HOP_LENGTH + 1, 0)


class Clip(NamedTuple):
    """A row of the table.

    Attributes:
        client: from 1; 0 for the global splits.
        file: relative to the audio's folder, `train-clean-100/103/1240/103-1240-0000.flac`.
        transcript: "" where the corpus has none.
    """

    split: str
    client: int
    speaker: str
    file: str
    num_samples: int
    transcript: str = ""

    @property
    def part(self) -> str:
        """Name of the part whose targets are in one file."""
        return f"{self.split}_{self.client}" if self.client else self.split

    @property
    def name(self) -> str:
        return Path(self.file).stem


@dataclass(frozen=True, eq=False)  # equal is the same: all shards of a process share one
class Prepared:
    """A prepared folder. `audio` is LibriSpeech itself."""

    folder: Path
    audio: Path
    clients: int
    partition: str
    clips: tuple[Clip, ...]

    def parts(self, split: str, client: int | None = None) -> dict[str, list[Clip]]:
        """Return the clips of a split by part: of one client or, with None, of all; a global split is one part."""
        parts: dict[str, list[Clip]] = {}
        for clip in self.clips:
            if clip.split == split and (client is None or clip.client in (0, client)):
                parts.setdefault(clip.part, []).append(clip)
        return parts


def read_prepared(data_path: str | Path) -> Prepared:
    """Read a prepared folder. It is read once per process, and again when it has changed; no audio is opened."""
    folder = Path(data_path).expanduser()
    if not folder.is_dir():
        raise CorpusError(f"data_path: there is no folder {data_path}")
    if not (folder / REPORT).is_file():
        raise CorpusError(
            f"data_path: {data_path} has no {REPORT}: openfl-audio data prepare librispeech writes it when it is done"
        )
    changed_ns = max((folder / name).stat().st_mtime_ns for name in (REPORT, TABLE))
    return _read_once(folder.resolve(), changed_ns)


class Targets:
    """Clusters that openfl-audio data prepare hubert-targets gave to the frames of a prepared folder.

    Attributes:
        info: {"codebook", "clusters", "feature"}.
        splits: which have targets.
    """

    def __init__(self, prepared: Prepared, name: str) -> None:
        self._folder = prepared.folder / TARGETS / name
        path = self._folder / TARGETS_INFO
        if not path.is_file():
            made = sorted(path.parent.name for path in (prepared.folder / TARGETS).glob(f"*/{TARGETS_INFO}"))
            raise CorpusError(
                f"targets: {prepared.folder} has no complete targets {name!r}, it has {', '.join(made) or 'none'}; "
                f"openfl-audio data prepare hubert-targets makes them"
            )
        info = read_json(path)
        self.info = {key: info[key] for key in ("codebook", "clusters", "feature")}
        self.splits = tuple(info["splits"])

    def read(self, part: str, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Return the targets of each clip of a part, int16 (frames,): views of a file that is mapped into memory."""
        path = self._folder / f"{part}.i16"
        ends = np.cumsum(count_frames(np.array([clip.num_samples for clip in clips])))
        if not path.is_file() or path.stat().st_size != ends[-1] * TARGET_TYPE.itemsize:
            raise CorpusError(
                f"targets: {path} should hold {ends[-1]:,} frames of {len(clips):,} clips; remove {self._folder} and "
                f"make them again"
            )
        return np.split(np.memmap(path, TARGET_TYPE, "r"), ends[:-1])


# A process has one prepared folder, or a few.
@lru_cache(maxsize=4)
def _read_once(folder: Path, changed_ns: int) -> Prepared:
    report = read_json(folder / REPORT)
    path = folder / TABLE
    header, *rows = read_rows(path) or [(1, [])]
    if tuple(header[1]) != COLUMNS:
        raise CorpusError(f"{path}: its first line should be {','.join(COLUMNS)}")
    clips = []
    for number, row in rows:
        try:
            split, client, speaker, file, num_samples, _, transcript = row
            clips.append(Clip(split, int(client), speaker, file, int(num_samples), transcript))
        except ValueError:
            raise CorpusError(f"{path}, line {number}: {row} should be {','.join(COLUMNS)}") from None
    return Prepared(folder, Path(report["audio"]), report["clients"], report["partition"], tuple(clips))
