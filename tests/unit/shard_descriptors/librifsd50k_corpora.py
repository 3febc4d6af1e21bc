"""A tiny LibriSpeech, FSD50K and WHAM with the real folder rules, in which every recording sounds different.

A recording is a tone of its own in its first 4 s, and the same tone 1,000 Hz higher from there on.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

SAMPLE_RATE = 16_000
# subset -> speaker -> how long its utterances are, in seconds; their order as text is not that of their numbers
SPEECH = {
    "train-clean-100": {"19": (9, 4.5, 5), "103": (2, 5, 5), "1089": (4, 6, 8.5, 5)},
    "train-clean-360": {"26": (5, 5), "118": (4.5, 13, 5)},
    "dev-clean": {"84": (5, 5), "174": (5, 9), "251": (5, 5)},
    "test-clean": {"61": (5, 5, 5), "121": (5,)},
}
SPEECH_LIKE = ("Laughter,Human_voice", "Dog,Speech", "Crowd,Human_group_actions")


class MadeCorpora(NamedTuple):
    librispeech: Path
    fsd50k: Path
    tones: dict[str, int]  # name of an utterance or clip -> frequency in Hz of its beginning


def recording(frequency_hz: float, seconds: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = np.sin(2 * np.pi * frequency_hz * time)
    higher = np.sin(2 * np.pi * (frequency_hz + 1_000) * time)
    return (0.5 * np.where(time < 4, tone, higher)).astype(np.float32)


def frequency_of(waveform: np.ndarray) -> int:
    """The loudest frequency of the first second at 16 kHz, in Hz."""
    return int(np.abs(np.fft.rfft(waveform[:SAMPLE_RATE])).argmax())


def make_corpora(root: Path, dev_clips: int = 60, eval_clips: int = 6) -> MadeCorpora:
    librispeech, fsd50k = root / "LibriSpeech", root / "FSD50K"
    tones = make_librispeech(librispeech, SPEECH)
    for number, (part, clips) in enumerate({"dev": dev_clips, "eval": eval_clips}.items()):
        ids = range(1_000 * (number + 1), 1_000 * (number + 1) + clips)
        tones |= make_fsd50k_part(fsd50k, part, {str(clip): "Rain,Water" for clip in ids}, 3_000 + 500 * number)
    return MadeCorpora(librispeech, fsd50k, tones)


def make_librispeech(root: Path, speech: dict[str, dict[str, Iterable[float]]]) -> dict[str, int]:
    tones: dict[str, int] = {}
    for subset, speakers in speech.items():
        for speaker, lengths_s in speakers.items():
            for number, seconds in enumerate(lengths_s):
                name = f"{speaker}-7-{number:04}"
                tones[name] = 200 + 11 * len(tones)
                folder = root / subset / speaker / "7"
                folder.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / f"{name}.flac", recording(tones[name], seconds), SAMPLE_RATE)
    return tones


def make_fsd50k_part(root: Path, part: str, labels: dict[str, str], first_hz: int) -> dict[str, int]:
    """Clips of 4.5, 9, 13 and 3 s in turn, every fifth one at 44.1 kHz, and three that have a speech-like label."""
    tones: dict[str, int] = {}
    audio, ground_truth = root / f"FSD50K.{part}_audio", root / "FSD50K.ground_truth"
    audio.mkdir(parents=True)
    ground_truth.mkdir(exist_ok=True)
    spoken = {f"{number}{len(part)}": text for number, text in enumerate(SPEECH_LIKE, start=7)}
    rows = labels | spoken
    with (ground_truth / f"{part}.csv").open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["fname", "labels", "mids"])
        table.writerows([clip, text, "/m/0"] for clip, text in rows.items())
    for number, clip in enumerate(rows):
        tones[clip] = first_hz + 13 * number
        rate = 44_100 if number % 5 == 0 else SAMPLE_RATE
        soundfile.write(audio / f"{clip}.wav", recording(tones[clip], (4.5, 9, 13, 3)[number % 4], rate), rate)
    return tones


def make_wham(root: Path, mixtures: dict[str, Iterable[str]], seconds: float = 5) -> dict[str, int]:
    """WHAM's wav16k/max: folder (tr, cv, tt) -> names of its mixtures. Noises are 2,000 Hz above their speech."""
    tones: dict[str, int] = {}
    for folder, names in mixtures.items():
        for part in ("s1", "noise"):
            (root / folder / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            tones[name] = 300 + 17 * len(tones)
            soundfile.write(root / folder / "s1" / f"{name}.wav", recording(tones[name], seconds), SAMPLE_RATE)
            noise = recording(tones[name] + 2_000, seconds)
            soundfile.write(root / folder / "noise" / f"{name}.wav", noise, SAMPLE_RATE)
    return tones
