"""Masks: streams of pseudo-random words, AES-256 in counter mode, of which any part can be made by itself.

On one core with AES instructions AES-256-CTR makes some 8 GB/s and ChaCha20 some 5 GB/s (measured in blocks of 1 MB
with `cryptography`), so masks are AES's. A key is for one stream, and so the counter begins at 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# 1 MB of uint32: what is made at a time is in the processor's cache, and memory does not depend on a model's size.
CHUNK_WORDS = 1 << 18
BLOCK_BYTES = 16
_ZEROS = bytes(CHUNK_WORDS * 4)


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
    size = np.dtype(dtype).itemsize
    block, offset = divmod(first * size, BLOCK_BYTES)
    n_bytes = offset + count * size
    encryptor = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(BLOCK_BYTES, "big"))).encryptor()
    stream = bytearray(n_bytes + BLOCK_BYTES)
    zeros = memoryview(_ZEROS)[:n_bytes] if n_bytes <= len(_ZEROS) else bytes(n_bytes)
    encryptor.update_into(zeros, stream)
    return np.frombuffer(stream, np.dtype(dtype).newbyteorder("<"), count, offset)


def add_masks(values: np.ndarray, masks: Iterable[Mask], first: int = 0) -> None:
    """Add the masks to `values` in place, modulo the size of their type; they are words `first` on of an update.

    `values` are flat and of unsigned integers.
    """
    masks = list(masks)
    for start in range(0, len(values), CHUNK_WORDS):
        part = values[start : start + CHUNK_WORDS]
        for mask in masks:
            stream = words(mask.key, values.dtype.str, first + start, len(part))
            if mask.sign > 0:
                np.add(part, stream, out=part)
            else:
                np.subtract(part, stream, out=part)
