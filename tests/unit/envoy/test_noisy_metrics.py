"""Noisy metrics: their noise, what is withheld, and that sites without clips look like others."""

import math

import numpy as np
import pytest

from openfl_audio.envoy.noisy_metrics import with_noise
from openfl_audio.privacy.noise import Noise
from openfl_audio.protocol.messages import TaskResult

RESULT = TaskResult(size=1000, metrics={"accuracy": 0.75, "loss": 0.5})


class Fixed(Noise):
    """Noise of known numbers."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = np.array(numbers)

    def normal(self, count: int) -> np.ndarray:
        drawn, self.numbers = self.numbers[:count], self.numbers[count:]
        return drawn


def test_the_size_and_the_right_clips_get_noise_of_the_multiplier_times_what_a_clip_moves_both():
    # A clip moves both by one at most, together by sqrt(2): with a multiplier of 10 sqrt(2) the deviation is 20.
    found = with_noise("validate", RESULT, 10 * math.sqrt(2), Fixed(2.0, -1.5))
    assert found == TaskResult(size=1040, metrics={"accuracy": (750 - 30) / 1040})


def test_noise_has_the_deviation_that_is_charged_for():
    noise = Noise()
    found = [with_noise("validate", RESULT, 5.0, noise) for _ in range(2000)]
    sizes = np.array([each.size for each in found])
    right = np.array([each.size * each.metrics["accuracy"] for each in found])
    for numbers, mean in ((sizes, 1000), (right, 750)):
        # Of 2000 draws: the mean to 4 standard errors, the deviation to 8 %, which is 5 of its own.
        assert abs(numbers.mean() - mean) < 4 * 5 * math.sqrt(2) / math.sqrt(2000)
        assert numbers.std() == pytest.approx(5 * math.sqrt(2), rel=0.08)
    assert abs(np.corrcoef(sizes, right)[0, 1]) < 0.1, "each has noise of its own"


def test_what_has_no_bound_for_a_clip_is_withheld_and_the_site_is_told(caplog):
    caplog.set_level("INFO")
    result = TaskResult(size=9, metrics={"loss": 0.5, "wer": 0.1, "accuracy": 0.5}, counts={"wer": 40})
    assert with_noise("validate", result, 1e-9, Noise()).metrics.keys() == {"accuracy"}
    assert "validate: no noise covers loss, wer, which are withheld" in caplog.text
    of_frames = TaskResult(size=9, metrics={"accuracy": 0.5}, counts={"accuracy": 4000})
    words = TaskResult(size=900, metrics={"wer": 0.5})
    for nothing in (of_frames, words):
        assert with_noise("validate", nothing, 1e-9, Noise()) == TaskResult(size=0, metrics={})
    assert "no noise covers accuracy" in caplog.text


@pytest.mark.parametrize(("accuracy", "right"), [(math.nan, 0.0), (-3.0, 0.0), (1e9, 10.0)])
def test_a_metric_that_is_no_share_adds_no_more_than_its_clips(accuracy, right):
    result = TaskResult(size=10, metrics={"accuracy": accuracy})
    assert with_noise("validate", result, math.sqrt(0.5), Fixed(0.0, -0.5)).metrics["accuracy"] == pytest.approx(
        max(right - 0.5, 0) / 10
    )


def test_a_site_without_clips_answers_as_others_do_and_numbers_stay_in_their_range():
    nobody = TaskResult(size=0, metrics={})
    found = with_noise("validate", nobody, math.sqrt(0.5), Fixed(4.0, 3.0))
    assert (found.size, found.metrics) == (4, {"accuracy": pytest.approx(0.75)})
    assert with_noise("validate", nobody, math.sqrt(0.5), Fixed(4.0, 9.0)).metrics == {"accuracy": 1.0}
    assert with_noise("validate", nobody, math.sqrt(0.5), Fixed(-4.0, 9.0)) == TaskResult(size=0, metrics={})
