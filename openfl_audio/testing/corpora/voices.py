"""Speakers, and the way to the process that speaks for them (`espeak.py`)."""

import importlib.util
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openfl_audio.errors import DemoCorpusError

SAMPLE_RATE = 16_000

ACCENTS = (
    "gmw/en-US", "gmw/en", "gmw/en-GB-scotland", "gmw/en-GB-x-rp",
    "gmw/en-GB-x-gbclan", "gmw/en-GB-x-gbcwmd", "gmw/en-US-nyc", "gmw/en-029",
)  # fmt: skip
# espeak-ng's voice variants that sound like people, one of each family of near-copies.
VARIANTS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8",
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee",
    "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "Storm", "adam", "anika", "antonio",
    "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa",
    "ian", "iven", "john", "kaukovalta", "klatt2", "linda", "max", "michel", "miguel", "norbert",
    "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "zac",
)  # fmt: skip
FEMALE_VARIANTS = frozenset({
    "f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie",
    "anika", "aunty", "belinda", "grandma", "linda", "shelby", "steph",
})  # fmt: skip


@dataclass(frozen=True)
class Speaker:
    """One voice. `pitch` and `pitch_range` are espeak-ng's 0 to 99, `rate` is words a minute."""

    voice: str  # accent+variant
    pitch: int
    pitch_range: int
    rate: int

    @property
    def sex(self) -> str:
        """Return the sex of the voice, "F" or "M"."""
        return "F" if self.voice.partition("+")[2] in FEMALE_VARIANTS else "M"


@dataclass(frozen=True)
class Utterance:
    """One take of a word or a sentence; all that espeak-ng has to know about it."""

    text: str
    voice: str
    pitch: int
    pitch_range: int
    rate: int
    seed: int


def check_espeak() -> None:
    """Raises `DemoCorpusError` where the library that speaks is not installed."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise DemoCorpusError("The demo corpus needs espeak-ng, which is not installed: pip install openfl-audio[demo]")


def choose_speakers(n_speakers: int, seed: int) -> list[Speaker]:
    """Every speaker has a voice variant of their own; the accents take turns."""
    rng = np.random.default_rng([seed, 0])
    return [
        Speaker(
            voice=f"{ACCENTS[index % len(ACCENTS)]}+{variant}",
            pitch=int(rng.integers(38, 63)),
            pitch_range=int(rng.integers(35, 66)),
            rate=int(rng.integers(135, 176)),
        )
        for index, variant in enumerate(rng.permutation(VARIANTS)[:n_speakers])
    ]


def vary(speaker: Speaker, text: str, rng: np.random.Generator) -> Utterance:
    """One take: nobody says a thing twice with the same pitch, melody and speed."""
    return Utterance(
        text=text,
        voice=speaker.voice,
        pitch=int(speaker.pitch + rng.integers(-8, 9)),
        pitch_range=int(speaker.pitch_range + rng.integers(-15, 16)),
        rate=int(speaker.rate * rng.uniform(0.88, 1.15)),
        seed=int(rng.integers(1, 2**31)),
    )


def speak(utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    """Have a child process say the utterances; yields one waveform each, (samples,) at 16 kHz."""
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as complaints:
        request.write(json.dumps([asdict(utterance) for utterance in utterances]).encode())
        request.seek(0)
        with subprocess.Popen(
            [sys.executable, Path(__file__).with_name("espeak.py")],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as child:
            reply: Any = child.stdout
            try:
                (rate,) = struct.unpack("<I", reply.read(4))
                for _ in utterances:
                    (n_bytes,) = struct.unpack("<I", reply.read(4))
                    samples = np.frombuffer(reply.read(n_bytes), "<i2")
                    yield resample(samples / 32768, rate)
            except struct.error as error:  # the child ended early
                child.wait()
                complaints.seek(0)
                reason = complaints.read().decode(errors="replace").strip() or "no reason given"
                raise DemoCorpusError(f"espeak-ng stopped: {reason}") from error
            finally:
                child.kill()


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """To 16 kHz through the spectrum, after padding with silence to whole seconds."""
    seconds = -(-len(waveform) // rate)
    spectrum = np.fft.rfft(waveform, seconds * rate)
    n_samples = seconds * SAMPLE_RATE
    return np.fft.irfft(spectrum[: n_samples // 2 + 1], n_samples) * (SAMPLE_RATE / rate)


def without_silence(speech: np.ndarray) -> np.ndarray:
    """Cut off the silence before the first and behind the last sample above 1/100 of the peak. Shape: (samples,)."""
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return speech[loud[0] : loud[-1] + 1]
