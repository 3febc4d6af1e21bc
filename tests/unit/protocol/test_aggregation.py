import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.rules import GeometricMedian, Mean, Median, TrimmedMean
from openfl_audio.protocol.server_optimizers import (
    FedAdagrad,
    FedAdam,
    FedYogi,
    OpenFLAdagrad,
    OpenFLAdam,
    OpenFLYogi,
)
from openfl_audio.protocol.values import clipped

RULES = Mean(), Mean(weighted=False), Median(), TrimmedMean(share=0.2), GeometricMedian()
OPTIMIZERS = [
    optimizer(learning_rate=0.3) for optimizer in (FedAdam, FedYogi, FedAdagrad, OpenFLAdam, OpenFLYogi, OpenFLAdagrad)
]


def test_clipping_shortens_an_update_to_the_norm_and_leaves_shorter_ones_alone():
    aggregation = Aggregation(clip_norm=2.0)
    current = np.array([1, 1, 1], np.float32)
    updates = [current + np.array(step, np.float32) for step in [(3, 0, 4), (0, 1, 0), (0, 0, 0)]]
    scales = aggregation.clip_scales([5.0, 1.0, 0.0])
    assert scales == [0.4, 1.0, 1.0]
    np.testing.assert_allclose(clipped(current, updates[0], scales[0]) - current, [1.2, 0, 1.6], rtol=1e-6)
    assert clipped(current, updates[1], scales[1]) is updates[1]
    assert Aggregation().clip_scales([5.0, 0.0]) == [1.0, 1.0]


@pytest.mark.parametrize("rule", [*RULES], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("optimizer", [None, *OPTIMIZERS], ids=lambda optimizer: optimizer and optimizer.optimizer)
def test_an_aggregation_comes_back_from_json_as_it_was(rule, optimizer):
    aggregation = Aggregation(rule=rule, clip_norm=0.5, server_optimizer=optimizer)
    assert Aggregation.model_validate_json(aggregation.model_dump_json()) == aggregation


def test_without_a_word_it_is_federated_averaging():
    assert Aggregation.model_validate_json("{}") == Aggregation(rule=Mean(weighted=True))
    assert Aggregation.model_validate({"server_optimizer": {"optimizer": "adagrad"}}).server_optimizer == FedAdagrad()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"rule": {"rule": "trimmed_mean", "share": 0.5}}, "share\n.*less than 0.5"),
        ({"rule": {"rule": "trimmed_mean", "share": -0.1}}, "share\n.*greater than or equal to 0"),
        ({"rule": {"rule": "trimmed_mean"}}, "share\n.*required"),
        ({"rule": {"rule": "krum"}}, "'krum'.*'mean', 'median', 'trimmed_mean', 'geometric_median'"),
        ({"rule": {"rule": "median", "share": 0.1}}, "share\n.*not permitted"),
        ({"clip_norm": 0}, "clip_norm\n.*greater than 0"),
        ({"clip_norm": float("inf")}, "clip_norm\n.*finite"),
        ({"clip": 1}, "clip\n.*not permitted"),
        ({"server_optimizer": {"optimizer": "sgd"}}, "'sgd'.*'adam', 'yogi', 'adagrad', .*'openfl_adam', .*"),
        ({"server_optimizer": {"optimizer": "adam", "learning_rate": 0}}, "learning_rate\n.*greater than 0"),
        ({"server_optimizer": {"optimizer": "adam", "betas": [0.9, 1]}}, "betas.1\n.*less than 1"),
        ({"server_optimizer": {"optimizer": "openfl_yogi", "betas": [0.9, 0.4]}}, "betas.1\n.*equal to 0.5"),
        ({"server_optimizer": {"optimizer": "adagrad", "epsilon": 0}}, "epsilon\n.*greater than 0"),
        ({"server_optimizer": {"optimizer": "openfl_adagrad", "initial_accumulator_value": -1}}, "equal to 0"),
        ({"server_optimizer": {"optimizer": "adagrad", "betas": [0.9, 0.9]}}, "betas\n.*not permitted"),
    ],
)
def test_a_choice_that_cannot_be_right_is_refused(content, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Aggregation.model_validate(content)


def test_torch_and_scikit_learn_stay_unloaded():
    code = "import sys, openfl_audio.protocol.aggregation; print({'torch', 'sklearn'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout == "set()\n"


@pytest.mark.parametrize(
    ("share", "clips", "expected"),
    [
        (None, [1, 2, 7], [1, 2, 7]),
        (0.5, [10**9, 30, 10], [40, 30, 10]),
        (0.4, [10, 9, 1], [2, 2, 1]),
        (0.4, [2, 2, 1], [2, 2, 1]),
        (0.5, [10, 1], [1, 1]),
        (0.3, [10, 3, 2], [2, 2, 2]),
        (0.5, [7], [7]),
    ],
)
def test_no_update_has_more_than_the_largest_share_of_the_weight(share, clips, expected):
    weights = Aggregation(max_share=share).weights(clips)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_rules_without_weights_have_none_to_limit():
    assert Aggregation(rule=Median(), max_share=0.1).weights([1, 99]) == [1, 99]
