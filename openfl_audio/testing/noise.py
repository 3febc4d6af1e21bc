"""Noise that repeats, with which two runs of DP-SGD can be compared to the bit. Nothing is private with it."""

import hashlib

from openfl_audio.privacy.noise import Noise


def repeatable_noise(seed: int, client: str, round_number: int) -> Noise:
    """Return a stream that follows from a seed, a client and a round, and says that it is not secret."""
    text = f"openfl-audio noise of tests\n{seed}\n{client}\n{round_number}\n"
    return Noise.repeatable(hashlib.sha256(text.encode()).digest())
