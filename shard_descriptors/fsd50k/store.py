"""A store of mel frames: each clip's frames once, in one memory-mapped float16 file, and a table; patches are views.

    store.json    settings, classes, digests of the corpus's tables, and whether the store is complete
    clips.jsonl   a line per clip, in the order of the frames: `StoredClip`
    frames.f16    float16, shape (frames of all clips, 96)

numpy only: an envoy opens shards without torch.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shard_descriptors.common.errors import CorpusError

SAMPLE_RATE = 22_050
N_FFT = 660  # samples; as long as the window: 30 ms
HOP_LENGTH = 220  # samples: 10 ms
N_MELS = 96
PATCH_FRAMES = 101  # one second
PATCH_HOP = 50  # frames

FEATURES = ("log_mel", "power")
LOG_FLOOR = 1e-10  # of power, so that digital silence has a logarithm
# The power of a full-scale tone is 2.7e4, of the loudest signal in [-1, 1] 8.2e4, and float16 ends at 6.5e4. A power of
# two, so that nothing is rounded.
POWER_SCALE = 0.25

VERSION = 1
DESCRIPTION = "store.json"
TABLE = "clips.jsonl"
FRAMES = "frames.f16"
FRAME_BYTES = 2 * N_MELS


class StoredClip(NamedTuple):
    """A clip in the table, as preparation found it.

    Attributes:
        name, file, split, labels, uploader: as in `fsd50k_layout.Clip`.
        num_frames: frames in the store; 0: left out, for the reason in `problem`.
        duration_s, sample_rate, channels: of its file; 0 where it cannot be read.
        size_bytes, modified_ns: of its file, so that a change is seen; 0 where there is none.
        checksum: CRC-32 of its frames.
        problem: why it is left out.
    """

    name: str
    file: str
    split: str
    labels: tuple[int, ...]
    uploader: str
    num_frames: int
    duration_s: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    size_bytes: int = 0
    modified_ns: int = 0
    checksum: int = 0
    problem: str | None = None


def count_patches(num_frames: np.ndarray | int) -> Any:
    """Count patches of 101 frames, every 50 frames, each with frames of its own clip; a shorter clip is repeated.

    The code of Green & Plumbley (arXiv 2105.08550) counts one more where the frames are a multiple of 50, and ends
    that patch with its last frame twice.

    >>> [int(count_patches(frames)) for frames in (31, 101, 150, 151, 502)]
    [1, 1, 1, 2, 9]
    """
    return 1 + np.maximum(num_frames - PATCH_FRAMES, 0) // PATCH_HOP


def count_stored(num_frames: int) -> int:
    """Return the frames worth storing: up to the end of the last patch.

    >>> [count_stored(frames) for frames in (31, 101, 150, 151, 502)]
    [31, 101, 101, 151, 501]
    """
    return min(num_frames, PATCH_FRAMES + PATCH_HOP * (int(count_patches(num_frames)) - 1))


def describe_settings(features: str) -> dict[str, Any]:
    """Return what decides the numbers in a store; two stores of equal settings and sources are equal."""
    if features not in FEATURES:
        raise CorpusError(f"features: {features!r} is unknown; choose {', '.join(FEATURES)}")
    return {
        "features": features,
        "sample_rate": SAMPLE_RATE,
        "n_fft": N_FFT,
        "hop_length": HOP_LENGTH,
        "n_mels": N_MELS,
        "patch_frames": PATCH_FRAMES,
        "patch_hop": PATCH_HOP,
        **({"log_floor": LOG_FLOOR} if features == "log_mel" else {"power_scale": POWER_SCALE}),
    }


class MelStore:
    """A complete store, opened by `open_store`; all shards of a process share one.

    Attributes:
        classes: names, in the order of the labels.
        clips: those that have frames, in the order of the table.
        left_out: name -> reason, of the others.
        frames: float16, shape (frames, 96): natural logarithm of the mel power, at least ln 1e-10; or the power
            times 0.25. A memory map.
        num_frames, first_frame, num_patches: of each clip; int64, shape (clips,).
        uploader_names: sorted.
        uploader_codes: of each clip, the position of its uploader; int64, shape (clips,).
    """

    def __init__(self, folder: Path, features: str, classes: list[str], rows: list[StoredClip]) -> None:
        self.folder = folder
        self.features = features
        self.classes = tuple(classes)
        self.clips = tuple(row for row in rows if row.num_frames)
        self.left_out = {row.name: str(row.problem) for row in rows if not row.num_frames}
        self.num_frames = np.array([clip.num_frames for clip in self.clips], dtype=np.int64)
        self.first_frame = np.cumsum(self.num_frames) - self.num_frames
        self.num_patches: np.ndarray = count_patches(self.num_frames)
        names, self.uploader_codes = np.unique([clip.uploader for clip in self.clips], return_inverse=True)
        self.uploader_names: list[str] = names.tolist()
        self.frames = _map_frames(folder, int(self.num_frames.sum()))

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return open_store, (self.folder,)  # pickled as it is, a memory map would be sent with all its gigabytes

    def patches(self, clips: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return patch `positions[k]` of clip `clips[k]`, for all k.

        Returns:
            float32, shape (k, 101, 96): log-mel, or mel power at its own scale.
        """
        within = PATCH_HOP * positions[:, None] + np.arange(PATCH_FRAMES)  # (k, 101)
        within %= self.num_frames[clips][:, None]  # a clip shorter than a patch begins again
        patches = self.frames[self.first_frame[clips][:, None] + within].astype(np.float32)
        return patches if self.features == "log_mel" else patches / np.float32(POWER_SCALE)


def open_store(folder: str | Path) -> MelStore:
    """Open a store; the next call of a process gives the same object, as long as `store.json` is the same file.

    Raises:
        CorpusError: no store, not finished, of another version, or its files do not belong together.
    """
    folder = Path(folder).expanduser().resolve()
    description = folder / DESCRIPTION
    if not description.is_file():
        raise CorpusError(f"data_path: {folder} is no store of mel frames; openfl-audio data prepare fsd50k makes one")
    return _open_once(folder, description.stat().st_mtime_ns)


# A process has one store, or a few.
@lru_cache(maxsize=4)
def _open_once(folder: Path, _modified_ns: int) -> MelStore:
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if description["version"] != VERSION:
        raise CorpusError(f"{folder} is a store of version {description['version']}, not {VERSION}; prepare it again")
    if not description["complete"]:
        raise CorpusError(f"{folder} is not finished: run openfl-audio data prepare fsd50k again, and it resumes")
    features = description["settings"]["features"]
    if description["settings"] != describe_settings(features):
        raise CorpusError(f"{folder} has other settings than {describe_settings(features)}; prepare it again")
    return MelStore(folder, features, description["classes"], read_table(folder / TABLE))


def _map_frames(folder: Path, num_frames: int) -> np.ndarray:
    size_bytes = (folder / FRAMES).stat().st_size if (folder / FRAMES).exists() else 0
    if not num_frames or size_bytes != num_frames * FRAME_BYTES:
        raise CorpusError(
            f"{folder / FRAMES} has {size_bytes:,} bytes where {TABLE} tells of {num_frames:,} frames "
            f"of {FRAME_BYTES} bytes; remove {folder} and prepare it again"
        )
    return np.memmap(folder / FRAMES, np.float16, "r", shape=(num_frames, N_MELS))


def read_table(path: Path) -> list[StoredClip]:
    """Read the complete lines of a table. A last line without an end was cut short when its writer was stopped."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = (json.loads(line) for line in lines)
    return [StoredClip(**{**row, "labels": tuple(row["labels"])}) for row in rows]
