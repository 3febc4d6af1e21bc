"""A tiny Speech Commands folder in which every file sounds different, so that a mix-up cannot pass.

Each word clip is a tone of its own whole number of hertz, and each noise file a slow ramp of its own height, whose
values tell both the file and the moment that a slice was cut from.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

SAMPLE_RATE = 16_000
NOISE_SECONDS = 5
WORDS = ("yes", "no", "up", "bed", "cat")  # three keywords, two that are unknown
# speaker -> how many clips of each word; in the lists as whole speakers, like the published ones
SPEAKERS = {
    "train": {"aa01": 3, "aa02": 1, "aa03": 2, "aa04": 1, "aa05": 2, "aa06": 4},
    "validation": {"bb01": 1, "bb02": 2, "bb03": 1},
    "testing": {"cc01": 2, "cc02": 3},
}


class MadeCorpus(NamedTuple):
    root: Path
    tones: dict[str, int]  # word clip -> frequency in Hz
    noise: list[str]  # the values of file k go from 0.1 k to 0.1 k + 0.1
    clips: dict[str, list[str]]  # train, validation, testing -> its word clips


def tone(frequency_hz: int, sample_rate: int = SAMPLE_RATE, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(sample_rate * seconds)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


def make_corpus(root: Path) -> MadeCorpus:
    clips = {
        split: [
            f"{word}/{speaker}_nohash_{number}.wav"
            for word in WORDS
            for speaker, clips_per_word in speakers.items()
            for number in range(clips_per_word)
        ]
        for split, speakers in SPEAKERS.items()
    }
    tones = {file: 200 + 7 * i for i, file in enumerate(itertools.chain(*clips.values()))}
    for file, frequency_hz in tones.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / file, tone(frequency_hz), SAMPLE_RATE)
    noise = [f"_background_noise_/noise_{k}.wav" for k in range(3)]
    (root / "_background_noise_").mkdir()
    for k, file in enumerate(noise):
        ramp = 0.1 * (k + np.linspace(0, 1, NOISE_SECONDS * SAMPLE_RATE, dtype=np.float32))
        soundfile.write(root / file, ramp, SAMPLE_RATE, subtype="FLOAT")
    for split in ("validation", "testing"):
        (root / f"{split}_list.txt").write_text("\n".join(clips[split]) + "\n")
    return MadeCorpus(root, tones, noise, clips)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> MadeCorpus:
    """For tests that only read."""
    return make_corpus(tmp_path_factory.mktemp("speech_commands"))


@pytest.fixture
def own_corpus(corpus: MadeCorpus, tmp_path: Path) -> MadeCorpus:
    """For tests that change files."""
    root = tmp_path / "speech_commands"
    shutil.copytree(corpus.root, root)
    return corpus._replace(root=root)


@pytest.fixture
def frequency_of() -> Callable[[np.ndarray], int]:
    """The loudest frequency of one second at 16 kHz, in Hz."""
    return lambda waveform: int(np.abs(np.fft.rfft(waveform)).argmax())


@pytest.fixture
def make_tone() -> Callable[..., np.ndarray]:
    return tone
