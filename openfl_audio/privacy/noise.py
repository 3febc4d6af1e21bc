"""Random numbers for noise and secret draws, from a stream that nobody outside can continue or repeat.

The numbers follow from a key of 32 bytes by AES-256 in counter mode (`masks.words`). The generators of torch and NumPy
are not meant to keep a secret: that of torch on a CPU takes in 32 bits of a seed, which can be tried one by one.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable

import numpy as np

from openfl_audio.privacy.masks import words
from openfl_audio.protocol.privacy import TEST_NOISE

logger = logging.getLogger(__name__)

KEY_BYTES = 32
WORD = "<u8"
# With half a step added to 52 bits, which a float64 still holds, no number is 0 or 1: noise is within 8.2 deviations.
UNIFORM_BITS = 52


class Noise:
    """A stream of random numbers, each of which is given once.

    Attributes:
        secret: whether the key was drawn from the operating system. Only then is what is released with this noise
            private; a key that follows from a seed is for tests.
    """

    def __init__(self) -> None:
        """Begin a stream whose key is drawn from the operating system."""
        self.secret = True
        self._key, self._position = secrets.token_bytes(KEY_BYTES), 0

    @classmethod
    def repeatable(cls, key: bytes) -> "Noise":
        """Return the stream of a known key, 32 bytes, which is not secret: see `openfl_audio.testing.noise`."""
        stream = cls()
        stream.secret, stream._key = False, key
        return stream

    def parts(self, count: int) -> list["Noise"]:
        """Return `count` streams of their own, for parts of what is drawn that are made side by side."""
        keys = self.words(count * KEY_BYTES // np.dtype(WORD).itemsize).tobytes()
        streams = [Noise.repeatable(keys[start : start + KEY_BYTES]) for start in range(0, len(keys), KEY_BYTES)]
        for stream in streams:
            stream.secret = self.secret
        return streams

    def words(self, count: int) -> np.ndarray:
        """Return `count` words of 64 random bits, uint64."""
        start = self._position
        self._position += count
        return words(self._key, WORD, start, count)

    def uniform(self, count: int) -> np.ndarray:
        """Return `count` numbers, uniform in (0, 1), float64."""
        start = self._position
        self._position += count
        return _uniform(self._key, start, count)

    def normal(self, count: int) -> np.ndarray:
        """Return `count` numbers of mean 0 and variance 1, normally distributed, float64."""
        return _normal(self.uniform(count))

    def set_aside(self, count: int) -> Callable[[int, int], np.ndarray]:
        """Return the next `count` numbers of `normal` as a function of the first one's place and their number.

        Any part may be asked for by any thread, in any order.
        """
        start = self._position
        self._position += count
        return lambda first, number: _normal(_uniform(self._key, start + first, number))

    def chosen(self, number: int, probability: float) -> np.ndarray:
        """Return which of `number` units are drawn, each by itself with `probability` (Poisson sampling), int64."""
        return np.flatnonzero(self.uniform(number) < probability)


def _normal(uniform: np.ndarray) -> np.ndarray:
    # SciPy takes 16 MB, which a director without privacy of sites does not need.
    from scipy.special import ndtri

    return ndtri(uniform)


def _uniform(key: bytes, start: int, count: int) -> np.ndarray:
    drawn = words(key, WORD, start, count) >> np.uint64(64 - UNIFORM_BITS)
    return (drawn.astype(np.float64) + 0.5) * 2.0**-UNIFORM_BITS


def noise_of(client: str, round_number: int) -> Noise:
    """Return the noise of a client, or of the director, in a round: secret, unless TEST_NOISE has a seed for tests."""
    seed = os.environ.get(TEST_NOISE)
    if seed is None:
        return Noise()
    logger.warning("%s makes noise repeat: nothing of '%s' in round %d is private", TEST_NOISE, client, round_number)
    return repeatable_noise(int(seed), client, round_number)


def repeatable_noise(seed: int, client: str, round_number: int) -> Noise:
    """Return a stream that follows from a seed, a client and a round, and says that it is not secret: for tests."""
    text = f"openfl-audio noise of tests\n{seed}\n{client}\n{round_number}\n"
    return Noise.repeatable(hashlib.sha256(text.encode()).digest())
