"""Frames of a shard for k-means."""

import tempfile
from typing import Any, ClassVar

import numpy as np
from openfl.interface.interactive_api.experiment import DataInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from workspaces.hubert_codebooks.features import Features, draw_clips, read_frames


class FrameData(DataInterface):
    """Gives the task the frames of the node's train clips, or of a share of them that the seed draws.

    They are kept in `folder`, or for as long as this process lives.
    """

    units: ClassVar[dict[str, str]] = {"train": "frames", "validate": "frames"}

    def __init__(self, features: Features, share: float = 1.0, seed: int = 0, folder: str | None = None) -> None:
        super().__init__()
        self._features, self._share, self._seed, self._folder = features, share, seed, folder

    @property
    def shard_descriptor(self) -> ShardDescriptor:
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, shard_descriptor: ShardDescriptor) -> None:
        self._shard_descriptor = shard_descriptor
        self._dataset = shard_descriptor.get_dataset("train")
        self._indices = draw_clips(len(self._dataset), self._share, self._seed)
        self._frames: np.ndarray | None = None

    def get_train_loader(self, **kwargs: Any) -> np.ndarray:
        """Return the frames, float32 (frames, width)."""
        if self._frames is None:
            if self._folder is None:
                self._temporary = tempfile.TemporaryDirectory()
            folder = self._folder or self._temporary.name
            self._frames = read_frames(self._dataset, self._features, self._indices, folder)
        return self._frames

    def get_train_data_size(self) -> int:
        """Return the number of frames, not of clips: the mean of `squared_error` is then that over all frames."""
        return int(self._dataset.num_frames[self._indices].sum())

    def get_valid_loader(self, **kwargs: Any) -> np.ndarray:
        return np.empty((0, self._features.width), dtype=np.float32)

    def get_valid_data_size(self) -> int:
        return 0
