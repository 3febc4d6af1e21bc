"""Metrics of validation with noise: how many clips there were, and how many of them were right.

With n clips, of which r are right, n + N(0, 2 z^2) and r + N(0, 2 z^2) are released (the Gaussian mechanism of Dwork &
Roth, "The algorithmic foundations of differential privacy", 2014, appendix A). A clip adds 1 to n and between 0 and 1
to r, so that the two move by sqrt(2) at most, and z is the noise multiplier. No other metric of a task has a bound for
what one clip adds to it, whichever the task is: a loss has none, and an error rate counts words.
"""

import logging
import math

from openfl_audio.privacy.noise import Noise
from openfl_audio.protocol.messages import MAX_CLIPS, TaskResult

logger = logging.getLogger("envoy")

SHARE = "accuracy"
SENSITIVITY = math.sqrt(2)


def with_noise(task: str, result: TaskResult, noise_multiplier: float, noise: Noise) -> TaskResult:
    """Return what may leave of the result of a validation `task`: its accuracy and its size, both with noise.

    An accuracy that is over something else than clips is withheld, as all other metrics are. Where none is left, so is
    the size, which may count words.
    """
    # Without clips no task has run: the noise stands for its metrics, so that nobody sees that there were none.
    has_share = SHARE not in result.counts and (SHARE in result.metrics or not result.size)
    if withheld := sorted(result.metrics.keys() - ({SHARE} if has_share else set())):
        logger.info("%s: no noise covers %s, which are withheld", task, ", ".join(withheld))
    of_size, of_right = SENSITIVITY * noise_multiplier * noise.normal(2)
    right = result.size * _between_0_and_1(result.metrics.get(SHARE, 0.0))
    size = min(max(round(result.size + of_size), 0), MAX_CLIPS)
    if not has_share or not size:
        return TaskResult(size=0, metrics={})
    return TaskResult(size=size, metrics={SHARE: _between_0_and_1((right + of_right) / size)})


def _between_0_and_1(value: float) -> float:
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
