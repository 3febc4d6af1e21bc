"""Points of a line, from points.csv: a column x and a column y."""

import csv
from pathlib import Path

import numpy as np
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor


class Points(ShardDataset):
    def __init__(self, rows):
        self.rows = np.array(rows, np.float32)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class PointsShard(ShardDescriptor):
    def __init__(self, path, rank, world_size):
        with Path(path).open(newline="") as file:
            rows = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
        self.train, self.validation = rows[rank - 1 :: world_size], rows

    def get_dataset(self, dataset_type):
        return Points(self.train if dataset_type == "train" else self.validation)

    sample_shape, target_shape, dataset_description = ["1"], ["1"], "points"
