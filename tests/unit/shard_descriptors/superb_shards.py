"""Builders and readers of shards for the tests of the SUPERB shard descriptor."""

from pathlib import Path

import numpy as np
import soundfile

from shard_descriptors.superb import SuperbShardDescriptor
from shard_descriptors.superb.layout import LABELS, SILENCE

REPOSITORY = Path(__file__).parents[3]


def descriptor(corpus, **params):
    return SuperbShardDescriptor(data_path=str(corpus.root), **params)


def all_shards(corpus, world_size, **params):
    return [descriptor(corpus, rank_worldsize=f"{rank},{world_size}", **params) for rank in range(1, world_size + 1)]


def starts(dataset, reads):
    """The first value of each cut out of the first noise file; the ramp's value is its place."""
    item = dataset.files.index("_background_noise_/noise_0.wav")
    return [float(dataset[item][0][0]) for _ in range(reads)]


def silence_of(dataset):
    """(file, place in its five seconds) of each silent item; the ramp's value is its place."""
    items = np.flatnonzero(dataset.labels == SILENCE)
    begins = {dataset.files[i]: 0.1 * int(dataset.files[i][-5]) for i in items}
    return [(dataset.files[i], (float(dataset[i][0][0]) - begins[dataset.files[i]]) / 0.1 * 5) for i in items]


def make_test_set(folder: Path, make_tone) -> None:
    for i, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        name = "0.wav" if label in ("_silence_", "_unknown_") else "dd01_nohash_0.wav"  # any name will do there
        soundfile.write(folder / label / name, make_tone(3_000 + i), 16_000)
