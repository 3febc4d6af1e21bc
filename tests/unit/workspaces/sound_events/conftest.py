import pytest

from tests.unit.workspaces.sound_events.made_clips import MadeClips


@pytest.fixture
def make_clips():
    return MadeClips


@pytest.fixture
def make_shard():
    """A shard descriptor of MadeClips: 30 train clips and 20 validation clips, or as many as are asked for."""

    class Shard:
        def __init__(self, train: int = 30, validation: int = 20, seed: int = 0) -> None:
            splits = (("train", train, seed), ("validation", validation, 100))
            self.datasets = {name: MadeClips(n_clips, seed=seed) for name, n_clips, seed in splits}

        def get_dataset(self, split: str) -> MadeClips:
            return self.datasets[split]

    return Shard
