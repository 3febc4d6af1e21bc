"""A few recordings of a site, each a tone of its own, with a table that names them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 8_000


def write_tone(file: Path, frequency_hz: float, seconds: float = 0.1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * frequency_hz * time), SAMPLE_RATE)


def write_table(folder: Path, rows: Sequence[str], name: str = "clips.csv", header: str = "file,word,speaker") -> Path:
    """Write the table, and a tone for each first cell that is the name of a WAV file which is not there."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        file = folder / row.split(",")[0]
        if file.suffix == ".wav" and not file.exists():
            write_tone(file, 200 + 50 * number)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / name


def frequency_of(waveform: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax() * SAMPLE_RATE / len(waveform))
