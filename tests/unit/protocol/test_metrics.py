import json
import pickle

import pytest

from openfl_audio.protocol.metrics import MeanOver


def test_a_mean_with_its_count_is_a_number_like_any_other():
    mean = MeanOver(0.25, 412)
    assert (mean, mean + 1, mean.count, json.dumps({"wer": mean})) == (0.25, 1.25, 412, '{"wer": 0.25}')
    assert type(mean * 2) is float


def test_a_mean_keeps_its_count_on_the_way_to_another_process():
    mean = pickle.loads(pickle.dumps(MeanOver(0.25, 412)))
    assert (mean, mean.count) == (0.25, 412)


def test_a_mean_over_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match="a mean over -1: a count is 0 or more"):
        MeanOver(0.25, -1)
