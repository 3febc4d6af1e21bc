"""A folder of Speech Commands with a word of seven speakers who train, one who validates and one who tests."""

from pathlib import Path

import numpy as np
import soundfile


def make_corpus(folder: Path) -> Path:
    for number in range(9):
        for word in ("yes", "no"):
            path = folder / word / f"{number:08x}_nohash_0.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(160, number / 10, np.float32), 16_000)
    (folder / "_background_noise_").mkdir()
    soundfile.write(folder / "_background_noise_" / "hum.wav", np.zeros(32_000, np.float32), 16_000)
    (folder / "validation_list.txt").write_text("yes/00000007_nohash_0.wav\nno/00000007_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/00000008_nohash_0.wav\nno/00000008_nohash_0.wav\n")
    return folder
