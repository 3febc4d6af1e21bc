"""A shard of points on y = 2x + 1."""

import numpy as np
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor


class Points(ShardDataset):
    def __init__(self, n_points: int) -> None:
        self.x = np.linspace(-1, 1, n_points, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x[index : index + 1], 2 * self.x[index : index + 1] + 1


class PointsShardDescriptor(ShardDescriptor):
    corpus = "points"

    def __init__(self, n_points: int) -> None:
        self.n_points = n_points

    def get_dataset(self, dataset_type: str) -> Points:
        return Points(self.n_points)

    @property
    def sample_shape(self) -> list[str]:
        return ["1"]

    @property
    def target_shape(self) -> list[str]:
        return ["1"]

    @property
    def dataset_description(self) -> str:
        return f"{self.n_points} points"


class NamedPointsShardDescriptor(PointsShardDescriptor):
    """Points of a person, whose name is in all that a shard and its data may say."""

    def __init__(self, n_points: int, person: str) -> None:
        super().__init__(n_points)
        self.person = person

    def get_dataset(self, dataset_type: str) -> Points:
        points = super().get_dataset(dataset_type)
        points.speakers = [self.person] * self.n_points
        points.files = [f"/recordings/{self.person}.wav"] * self.n_points
        return points

    @property
    def dataset_description(self) -> str:
        return f"{self.n_points} points of {self.person}"
