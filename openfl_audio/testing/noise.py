"""Noise that repeats, with which two runs of DP-SGD can be compared to the bit. Nothing is private with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from openfl_audio.protocol.privacy import TEST_NOISE


@contextmanager
def noise_that_repeats(seed: int) -> Iterator[None]:
    """Let private tasks of this process, and of those that it starts, take noise that follows from `seed`.

    An envoy with a budget refuses to start so, and so do an envoy whose director is on another machine, and a director
    that other machines can reach.
    """
    before = os.environ.get(TEST_NOISE)
    os.environ[TEST_NOISE] = str(seed)
    try:
        yield
    finally:
        del os.environ[TEST_NOISE]
        if before is not None:
            os.environ[TEST_NOISE] = before
