"""Outputs of a frozen encoder, kept on the node's disk, so that every clip is encoded once.

    <OPENFL_AUDIO_CACHE>/encoder_outputs/
        lock                held while a store is opened, written to or removed
        <store>/            one encoder and one way to its input
            in_use          locked (shared) by every process that has the store open; its time is that of the last use
            keys            32 bytes per clip, in the order of the slots
            outputs         a slot per clip: float16 (frames, width)

A clip is in the store once its key is whole, and the key is written after the slot. Whatever a killed process left
behind it is written over. Locks are the kernel's, so they end with their process.
"""

import fcntl
import hashlib
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

KEY_BYTES = 32
NOT_KEPT = -1  # in place of a slot


class CacheError(RuntimeError):
    """The cache's folder or its bound cannot be used."""


def clip_key(waveform: np.ndarray) -> bytes:
    """Return what identifies a clip: its samples, so that a changed recording is another clip."""
    return hashlib.sha256(waveform.astype(np.float32).tobytes()).digest()


def open_store(name: str, shape: tuple[int, int]) -> "OutputStore":
    """Open the store `name` of outputs of `shape` (frames, width), in the node's cache.

    The environment says where it is (OPENFL_AUDIO_CACHE, by default ~/.cache/openfl-audio) and how large all stores
    together may become (OPENFL_AUDIO_CACHE_GB in 10^9 bytes, by default 20). Raises CacheError.
    """
    folder = os.environ.get("OPENFL_AUDIO_CACHE") or "~/.cache/openfl-audio"
    limit = os.environ.get("OPENFL_AUDIO_CACHE_GB") or "20"
    try:
        limit_bytes = int(float(limit) * 1e9)
    except (ValueError, OverflowError) as error:
        raise CacheError(f"OPENFL_AUDIO_CACHE_GB: {limit!r} should be a number of gigabytes") from error
    return _open_once(Path(folder).expanduser() / "encoder_outputs", name, shape, limit_bytes)


class OutputStore:
    """Outputs of one encoder, float16 (frames, width) each. It is open as long as there is a reference to it.

    Once the bound is reached, its clips stay and no more are taken in: epochs read all clips in turn, so whichever clip
    made room for another would be missed before that one is read. Stores that no process has open make room for
    it, the least recently used first.
    """

    def __init__(self, root: Path, name: str, shape: tuple[int, int], limit_bytes: int) -> None:
        self.root, self.folder, self.shape, self.limit_bytes = root, root / name, shape, limit_bytes
        self.slot_bytes = 2 * shape[0] * shape[1]
        self._slots: dict[bytes, int] = {}
        self._count = 0
        self._warned = False
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root):
                self.folder.mkdir(exist_ok=True)
                self._in_use = os.open(self.folder / "in_use", os.O_RDWR | os.O_CREAT)
                weakref.finalize(self, os.close, self._in_use)
                fcntl.flock(self._in_use, fcntl.LOCK_SH)
                for file in ("keys", "outputs"):
                    (self.folder / file).touch()
                self._mapped = self._map()
        except OSError as error:
            raise CacheError(
                f"the cache folder {root} cannot be used ({error.strerror}); "
                "set OPENFL_AUDIO_CACHE to a folder that can"
            ) from error

    def __len__(self) -> int:
        self._read_new_keys()
        return self._count

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Return the slot of each clip, or NOT_KEPT."""
        os.utime(self._in_use)
        if any(key not in self._slots for key in keys):
            self._read_new_keys()
        return [self._slots.get(key, NOT_KEPT) for key in keys]

    def read(self, slots: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the outputs in `slots`, in memory: float16 (clips, frames, width)."""
        if len(slots) and np.max(slots) >= len(self._mapped):
            self._mapped = self._map()
        return self._mapped[np.asarray(slots, dtype=np.int64)]

    def add(self, keys: Sequence[bytes], outputs: np.ndarray) -> list[int]:
        """Keep `outputs`, float16 (clips, frames, width). Returns their slots, NOT_KEPT where there was no room."""
        if outputs.shape[1:] != self.shape:
            raise ValueError(f"outputs of shape {outputs.shape[1:]}, where {self.shape} was expected")
        try:
            with _locked(self.root):
                self._read_new_keys()
                new = {key: output for key, output in zip(keys, outputs, strict=True) if key not in self._slots}
                fitting = list(new)[: self._make_room(len(new))]
                if fitting:
                    self._append(fitting, np.stack([new[key] for key in fitting]))
        except OSError as error:  # a full disk must not end a training
            self._warn(f"{self.folder} cannot be written ({error.strerror})")
        slots = self.find(keys)
        if NOT_KEPT in slots:
            self._warn(f"the limit of {self.limit_bytes / 1e9:g} GB (OPENFL_AUDIO_CACHE_GB) is reached")
        return slots

    def _append(self, keys: list[bytes], outputs: np.ndarray) -> None:
        # A key without a slot, after a loss of power, must not come to stand for the next slot.
        os.truncate(self.folder / "keys", self._count * KEY_BYTES)
        _write_at(self.folder / "outputs", self._count * self.slot_bytes, outputs.astype(np.float16).tobytes())
        _write_at(self.folder / "keys", self._count * KEY_BYTES, b"".join(keys))

    def _read_new_keys(self) -> None:
        # The smaller count, in case a machine lost power and with it the end of a file.
        count = min(_size(self.folder / "keys") // KEY_BYTES, _size(self.folder / "outputs") // self.slot_bytes)
        if count <= self._count:
            return
        with (self.folder / "keys").open("rb") as file:
            file.seek(self._count * KEY_BYTES)
            new = file.read((count - self._count) * KEY_BYTES)
        for i in range(count - self._count):
            self._slots[new[i * KEY_BYTES : (i + 1) * KEY_BYTES]] = self._count + i
        self._count = count

    def _map(self) -> np.ndarray:
        self._read_new_keys()
        if not self._count:
            return np.empty((0, *self.shape), np.float16)
        return np.memmap(self.folder / "outputs", np.float16, "r", shape=(self._count, *self.shape))

    def _make_room(self, wanted: int) -> int:
        """Remove unused stores that stand in the way, and return how many of `wanted` clips fit."""
        clip_bytes = self.slot_bytes + KEY_BYTES
        others = sorted((path.parent for path in self.root.glob("*/in_use")), key=_last_use)
        free = self.limit_bytes - self._count * clip_bytes
        free -= sum(_store_bytes(other) for other in others if other != self.folder)
        for other in others:
            if free >= wanted * clip_bytes:
                break
            if other != self.folder:
                free += _remove_unused(other)
        return min(wanted, max(0, free // clip_bytes))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logger.warning(
                "%s: the outputs of %d clips are kept, those of further clips are computed each time", reason, len(self)
            )
            self._warned = True


# One: a store that no data refers to any more is closed when the next is opened, and may then make room for it.
_open_once = lru_cache(maxsize=1)(OutputStore)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unused(folder: Path) -> int:
    """Remove a store, unless a process has it open. Returns the bytes that this frees."""
    with (folder / "in_use").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        freed = _store_bytes(folder)
        # in_use last: without it no process would find the rest, if this one is killed here.
        for name in ("keys", "outputs", "in_use"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    logger.info("removed %s (%.1f GB), which was not in use, to make room", folder, freed / 1e9)
    return freed


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        # The slots must be on the disk before their keys are.
        os.fsync(file.fileno())


def _store_bytes(folder: Path) -> int:
    return _size(folder / "keys") + _size(folder / "outputs")


def _last_use(folder: Path) -> float:
    return (folder / "in_use").stat().st_mtime


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
