"""The process that speaks: reads utterances as JSON from stdin, writes its sample rate and 16-bit samples to stdout.

espeak-ng is GPL-3.0, so only this file loads it, and this file is run and never imported: nothing else in openfl-audio
links to it. The reply is the sample rate, then for each utterance the number of bytes and that many bytes of samples;
numbers are 32-bit little-endian.
"""

import ctypes
import json
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Speak the utterances of standard input, as JSON, and write their samples to standard output."""
    import espeakng_loader

    utterances = json.load(sys.stdin)
    # espeak-ng keeps the path of its data in 160 bytes, and a virtual environment can lie deep.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
        engine = Engine(espeakng_loader.get_library_path(), Path(folder))
        sys.stdout.buffer.write(struct.pack("<I", engine.rate))
        for utterance in utterances:
            samples = engine.say(**utterance)
            sys.stdout.buffer.write(struct.pack("<I", len(samples)) + samples)


class Engine:
    """libespeak-ng through ctypes; the numbers are those of its speak_lib.h."""

    AUDIO_OUTPUT_SYNCHRONOUS = 2  # no playback: samples go to a callback
    DONT_EXIT = 0x8000
    RATE, PITCH, RANGE = 1, 3, 4
    CHARS_UTF8 = 1

    def __init__(self, library: str, data_parent: Path) -> None:
        self.chunks: list[bytes] = []
        self.library: Any = ctypes.CDLL(library)
        self.rate: int = self.library.espeak_Initialize(
            self.AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_parent), self.DONT_EXIT
        )
        if self.rate <= 0:
            raise SystemExit(f"its data cannot be loaded from {data_parent}")
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = callback_type(self.collect)  # kept: ctypes does not hold a reference
        self.library.espeak_SetSynthCallback(self.callback)

    def collect(self, samples: Any, n_samples: int, events: Any) -> int:
        """Keep the samples that espeak-ng hands over; it calls this."""
        if samples and n_samples > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * n_samples))
        return 0  # go on

    def say(self, text: str, voice: str, pitch: int, pitch_range: int, rate: int, seed: int) -> bytes:
        """16-bit mono samples of one utterance; the parameters are those of `voices.Utterance`."""
        self.chunks.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"it has no voice {voice!r}")
        self.library.espeak_SetParameter(self.RATE, rate, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        self.library.espeak_SetParameter(self.RANGE, pitch_range, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        buffer = ctypes.create_string_buffer(text.encode())
        status = self.library.espeak_Synth(buffer, ctypes.c_size_t(len(buffer)), 0, 1, 0, self.CHARS_UTF8, None, None)
        if status != 0 or not self.chunks:
            raise SystemExit(f"it cannot say {text!r} as {voice!r}")
        return b"".join(self.chunks)


if __name__ == "__main__":
    main()
