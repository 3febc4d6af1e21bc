import numpy as np
import pytest
from pydantic import ValidationError

from openfl_audio.protocol.shard_sizes import SIZES, sizes_of


class Split(list):
    @property
    def num_frames(self) -> np.ndarray:
        return np.array(self)


class Labelled(list):
    @property
    def num_labels(self) -> np.ndarray:
        return np.array(self)


class Shard:
    def __init__(self, **splits) -> None:
        self.splits = splits

    def get_dataset(self, split: str):
        return self.splits[split]


def test_splits_are_counted_in_clips_and_frames():
    shard = Shard(train=Split([100, 50]), validation=["a", "b", "c"])
    assert sizes_of(shard) == {"train": {"clips": 2, "frames": 150}, "validate": {"clips": 3}}


def test_labels_are_counted_where_a_split_has_them():
    assert sizes_of(Shard(train=Labelled([1, 3]), validation=[]))["train"] == {"clips": 2, "labels": 4}


def test_what_cannot_be_opened_or_counted_has_no_bound():
    assert sizes_of(Shard(train=iter([]))) == {}
    assert sizes_of(object()) == {}


def test_sizes_on_the_wire_are_numbers_of_clips():
    assert SIZES.validate_json('{"train": {"clips": 3}}') == {"train": {"clips": 3}}
    for wrong in ('{"train": {"clips": -1}}', '{"train": {"clips": 1e30}}', "[]", '{"train": 3}'):
        with pytest.raises(ValidationError):
            SIZES.validate_json(wrong)
