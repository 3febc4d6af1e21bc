"""Masks: streams of pseudo-random words, AES-256 in counter mode, of which any part can be made by itself.

On one core with AES instructions AES-256-CTR makes some 8 GB/s and ChaCha20 some 5 GB/s (measured in blocks of 1 MB
with `cryptography`), so masks are AES's. A key is for one stream, and so the counter begins at 0.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# 1 MB of uint32: what is made at a time is in the processor's cache, and memory does not depend on a model's size.
CHUNK_WORDS = 1 << 18
BLOCK_BYTES = 16
_ZEROS = memoryview(bytes(CHUNK_WORDS * 4))


@dataclass(frozen=True)
class Mask:
    """A stream of words that is added to an update, or taken away from it.

    Attributes:
        key: the key of the stream, 32 bytes.
        sign: 1 to add, -1 to take away.
    """

    key: bytes
    sign: int = 1


def words(key: bytes, dtype: str, first: int, count: int) -> np.ndarray:
    """Return words `first` up to `first + count` of the stream of `key`, as unsigned integers of `dtype`."""
    return _Stream(key, np.dtype(dtype), first).next(count, _room_for(count, np.dtype(dtype)))


def add_masks(values: np.ndarray, masks: Iterable[Mask], first: int = 0) -> None:
    """Add the masks to `values` in place, modulo the size of their type; they are words `first` on of an update.

    `values` are flat and of unsigned integers.
    """
    for _ in _masked(values, masks, first, values):
        continue


def masked(values: np.ndarray, masks: Iterable[Mask]) -> Iterator[np.ndarray]:
    """Yield an update's words with the masks added, in chunks of CHUNK_WORDS; the next one overwrites a chunk."""
    return _masked(values, masks, 0, np.empty(min(CHUNK_WORDS, len(values)), values.dtype))


def _masked(values: np.ndarray, masks: Iterable[Mask], first: int, into: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `values` in chunks with the masks added, which lie in `into`: memory for a chunk, or for all of them."""
    streams = [(_Stream(mask.key, values.dtype, first), np.add if mask.sign > 0 else np.subtract) for mask in masks]
    # Fresh memory would cost as much time as a mask.
    room = _room_for(min(CHUNK_WORDS, len(values)), values.dtype)
    for start in range(0, len(values), CHUNK_WORDS):
        chunk = values[start : start + CHUNK_WORDS]
        place = into[start : start + len(chunk)] if len(into) == len(values) else into[: len(chunk)]
        for stream, add in streams:
            chunk = add(chunk, stream.next(len(chunk), room), out=place)
        yield chunk


def _room_for(count: int, dtype: np.dtype) -> np.ndarray:
    """Return memory for so many words, and for a block more, which OpenSSL insists on."""
    return np.empty(count * dtype.itemsize + BLOCK_BYTES, np.uint8)


class _Stream:
    """The words of a key from place `first` on, in their order."""

    def __init__(self, key: bytes, dtype: np.dtype, first: int) -> None:
        block, offset = divmod(first * dtype.itemsize, BLOCK_BYTES)
        self._dtype = dtype.newbyteorder("<")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(BLOCK_BYTES, "big"))).encryptor()
        self._encryptor.update(bytes(offset))

    def next(self, count: int, room: np.ndarray) -> np.ndarray:
        """Return the next `count` words, which lie in `room`."""
        n_bytes = count * self._dtype.itemsize
        zeros = _ZEROS[:n_bytes] if n_bytes <= len(_ZEROS) else bytes(n_bytes)
        self._encryptor.update_into(zeros, room.data)
        return room[:n_bytes].view(self._dtype)
