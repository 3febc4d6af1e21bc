"""Site level at a director that is trusted: clipped updates, noise on their mean, a bound that adapts.

With a model's change d_i of each site that sent one, clipped to the norm C, and n sites that were planned for the
round, the next model is the current one and

    (sum_i clip(d_i, C) + N(0, (z * C)^2)) / n

A site more or less changes the sum by at most C, whatever its update and however many sites came: the number by which
is divided does not depend on them, and neither do weights, as every site counts the same. This is DP-FedAvg of McMahan
et al. (arXiv 1710.06963) with a fixed denominator. Tensors that are not trained stay as they are.
"""

import math
from collections.abc import Mapping

import numpy as np

from openfl_audio.privacy.clipping import bounds
from openfl_audio.privacy.noise import Noise, noise_of
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.privacy import SiteLevel

# The name under which the director draws noise, in a federation and in a simulation.
DIRECTOR = "director"


class SiteRound:
    """The clipping and the noise of one round, for models in memory and in files alike.

    The noise of a value is that of its place among the trained tensors, in the order of their names, so that it does
    not depend on how tensors are cut into slices.
    """

    def __init__(self, level: SiteLevel, planned: int, clip: float, sizes: Mapping[str, int], noise: Noise) -> None:
        """Begin a round with the bound `clip`; `sizes` are the numbers of values of the trained tensors, by name."""
        self._level, self._planned, self._clip, self._noise = level, planned, clip, noise
        self._names = sorted(sizes)
        counts = [sizes[name] for name in self._names]
        self._bounds = bounds(clip, level.clipping, counts)
        self._places = dict(zip(self._names, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
        self._normal = noise.set_aside(sum(counts))
        multiplier = level.noise_multiplier
        if level.adaptive is not None:
            multiplier = level.adaptive.update_noise(multiplier)
        self._deviation = multiplier * clip
        self._said = 0.0

    def scales(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Return by what the change of each tensor is multiplied, for an update whose changes have these norms.

        An update is taken in with this, once.
        """
        whole = math.sqrt(math.fsum(norms[name] ** 2 for name in self._names))
        self._said += 0.5 if whole <= self._clip else -0.5
        if self._bounds is None:
            return dict.fromkeys(self._names, _scale(whole, self._clip))
        return {name: _scale(norms[name], bound) for name, bound in zip(self._names, self._bounds, strict=True)}

    @staticmethod
    def add(total: np.ndarray, current: np.ndarray, update: np.ndarray, scale: float) -> None:
        """Add the clipped change of an update to `total`, all of them flat."""
        change = np.subtract(update, current, dtype=np.float64)
        change *= scale
        total += change

    def finish(self, total: np.ndarray, name: str, first: int, current: np.ndarray) -> np.ndarray:
        """Return the next values, float64, of a tensor from `first` on, from the sum of clipped changes."""
        noisy = total + self._deviation * self._normal(self._places[name] + first, len(current))
        return current + noisy / self._planned

    def next_clip(self) -> float:
        """Return the bound of the next round. A site that was planned and did not come says nothing, which is 0."""
        adaptive = self._level.adaptive
        if adaptive is None:
            return self._clip
        share = (self._said + adaptive.count_noise * float(self._noise.normal(1)[0])) / self._planned + 0.5
        return self._clip * math.exp(-adaptive.rate * (share - adaptive.quantile))


def begin_site_round(
    plan: ExperimentPlan, level: SiteLevel, clip: float | None, sizes: Mapping[str, int], round_number: int
) -> SiteRound:
    """Return the clipping and the noise of a round at the director.

    `clip` is the bound where it has moved from the plan's, and `sizes` the numbers of values of the trained tensors.
    """
    planned = len(plan.participation.trainers(0, plan.envoys or ()))
    return SiteRound(level, planned, clip or level.clip, sizes, noise_of(DIRECTOR, round_number))


def _scale(value: float, limit: float) -> float:
    return 1.0 if value <= limit else limit / value
