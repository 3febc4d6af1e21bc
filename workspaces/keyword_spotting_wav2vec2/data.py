"""Clips of a shard as the model wants them."""

from typing import Any

import numpy as np
from openfl.interface.interactive_api.shard_descriptor import ShardDataset
from torch.utils.data import Dataset

from openfl_audio.node.shard_data import ShardData
from workspaces.keyword_spotting.data import MAX_SHIFT_SAMPLES, repeat_rare_labels
from workspaces.keyword_spotting_wav2vec2.model import create_feature_extractor


class Clips(Dataset):
    """Items {"input_values": float32 (samples,), "labels": int}, decoded one by one when they are asked for."""

    def __init__(self, shard_dataset: ShardDataset) -> None:
        self.shard_dataset = shard_dataset
        self.feature_extractor = create_feature_extractor()

    def __len__(self) -> int:
        return len(self.shard_dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        waveform, label = self.shard_dataset[index]
        values = self.feature_extractor(waveform, sampling_rate=self.feature_extractor.sampling_rate).input_values[0]
        return {"input_values": np.asarray(values, dtype=np.float32), "labels": int(label)}


class TrainClips(Clips):
    """Clips shifted at random in time, with rare labels repeated: every label comes as often as the median one.

    SUPERB counts each of a few long noise recordings as one clip of silence; every access cuts another second out of
    it. Without repetition an envoy would hear silence once or twice an epoch.

    Attributes:
        num_clips: those of the shard, without repetitions
        speakers: who says each clip of the shard, (num_clips,); "" where that is not known
    """

    def __init__(self, shard_dataset: ShardDataset) -> None:
        super().__init__(shard_dataset)
        self.num_clips = len(shard_dataset)
        self.speakers = [*getattr(shard_dataset, "speakers", [""] * self.num_clips)]
        self.indices = repeat_rare_labels(np.asarray(shard_dataset.labels))
        self.begin_round(0)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = super().__getitem__(self.indices[index])
        shift = self.generator.integers(-MAX_SHIFT_SAMPLES, MAX_SHIFT_SAMPLES + 1)
        # Around the corner instead of filling up with zeros: noise continues as noise.
        return clip | {"input_values": np.roll(clip["input_values"], shift)}

    def unchanged(self, clip: int) -> dict[str, Any]:
        """Return a clip of the shard, by its number there, as it is."""
        return super().__getitem__(clip)

    def begin_round(self, round_number: int) -> None:
        """Begin a round: what it draws at random does not depend on the rounds before.

        Not called `set_epoch`: the Trainer would call that by itself, with 0 at the beginning of every round.
        """
        self.shard_dataset.set_epoch(round_number)
        self.generator = np.random.default_rng(round_number)


class KeywordData(ShardData):
    """Gives the tasks their clips: those of the node's shard. A clip that is repeated weighs no more in the mean."""

    def make_train(self, dataset: ShardDataset) -> Any:
        return TrainClips(dataset)

    def make_validation(self, dataset: ShardDataset) -> Any:
        return Clips(dataset)

    def get_train_data_size(self) -> int:
        return self._train.num_clips
