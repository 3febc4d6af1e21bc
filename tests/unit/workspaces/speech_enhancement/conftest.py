from collections.abc import Callable

import numpy as np
import pytest

from workspaces.speech_enhancement.settings import SudoRmRfSettings


class Items:
    """Triples of distinct waveforms with the members of a LibriFSD50K dataset: a low hum for speech, two higher tones.

    On the train split the phase of the second tone is another one in every epoch.
    """

    sample_rate = 16_000

    def __init__(self, number: int, supervised: bool, draws: bool, num_samples: int = 8_000) -> None:
        self.number, self.supervised, self.draws, self.num_samples = number, supervised, draws, num_samples
        self.speakers = [f"speaker {i}" for i in range(number)]
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng((index, 1))
        extra_phase = np.random.default_rng((index, 2, self.epoch if self.draws else 0)).random()
        time = np.arange(self.num_samples) / 16_000
        noises_hz = generator.permutation([1_500, 4_000]) + 200 * generator.random(2)
        pitch = 200 + 40 * generator.random()
        speech = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3))
        noise = np.sin(2 * np.pi * (noises_hz[0] * time + generator.random()))
        extra = np.sin(2 * np.pi * (noises_hz[1] * time + extra_phase))
        return tuple((0.1 * signal).astype(np.float32) for signal in (speech, noise, extra))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Shard:
    def __init__(self, supervised: bool) -> None:
        self.supervised = supervised

    def get_dataset(self, split: str) -> Items:
        return Items(16 if split == "train" else 4, self.supervised, draws=split == "train")


@pytest.fixture
def open_shard() -> Callable[[str], Shard]:
    """Open the shard of a client by its name; supervised are those whose names begin so."""
    return lambda name: Shard(supervised=name.startswith("supervised"))


@pytest.fixture
def tiny_model() -> SudoRmRfSettings:
    return SudoRmRfSettings(
        out_channels=16, in_channels=32, num_blocks=1, upsampling_depth=3, kernel_size=41, num_bases=48, num_groups=2
    )
