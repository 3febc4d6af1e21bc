"""Site level at a director that is trusted: clipped updates, noise on their mean, a bound that adapts.

With a model's change d_i of each site that sent one, clipped to the norm C, and n sites that were planned for the
round, the aggregate is

    (sum_i clip(d_i, C) + N(0, (z * C)^2)) / n

A site more or less changes the sum by at most C, whatever its update and however many sites came: the number by which
is divided does not depend on them, and neither do weights, as every site counts the same. This is DP-FedAvg of McMahan
et al. (arXiv 1710.06963) with a fixed denominator. An update is a dictionary of floating arrays by name; all of a
round have the same names and shapes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from openfl_audio.privacy.clipping import bounds, check_positive
from openfl_audio.privacy.noise import Noise
from openfl_audio.protocol.privacy import Clipping

Tensors = Mapping[str, np.ndarray]


def norm(change: Tensors) -> float:
    """Return the Euclidean norm of all values of an update together."""
    return math.sqrt(sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in change.values()))


def clip_update(change: Tensors, clip: float, clipping: Clipping = "flat") -> dict[str, np.ndarray]:
    """Return the update, float64, with a norm of at most `clip`; see `openfl_audio.privacy.clipping` for the ways.

    An update with a value that is not finite becomes zeros, as leaving it out would tell that it was there.
    """
    limits = bounds(clip, clipping, [tensor.size for tensor in change.values()])
    if not all(np.isfinite(tensor).all() for tensor in change.values()):
        return {name: np.zeros(tensor.shape) for name, tensor in change.items()}
    if limits is None:
        scale = _scale(norm(change), clip)
        return {name: tensor * scale for name, tensor in _doubles(change)}
    return {
        name: tensor * _scale(float(np.linalg.norm(tensor)), limit)
        for (name, tensor), limit in zip(_doubles(change), limits, strict=True)
    }


def noisy_mean(
    clipped: Iterable[Tensors], like: Tensors, clip: float, noise_multiplier: float, planned: int, noise: Noise
) -> dict[str, np.ndarray]:
    """Return the mean of clipped updates over the `planned` number of sites, with noise, float64.

    `like` has the names and shapes of an update: where none came, the mean is noise alone. Updates are added one at a
    time. Raises ValueError if a multiplier or the number is not above 0.
    """
    check_positive(clip=clip, noise_multiplier=noise_multiplier, planned=planned)
    total = {name: np.zeros(tensor.shape) for name, tensor in like.items()}
    for update in clipped:
        for name, tensor in total.items():
            tensor += update[name]
    for tensor in total.values():
        tensor += noise_multiplier * clip * noise.normal(tensor.size).reshape(tensor.shape)
        tensor /= planned
    return total


@dataclass(frozen=True)
class AdaptiveClip:
    """A bound that follows a quantile of the norms of updates, which is learned with noise.

    Andrew et al., "Differentially private learning with adaptive clipping", arXiv 1905.03871, algorithm 1: in a round
    with bound C each site says whether its norm is at most C, as +1/2 or -1/2, and with b the noisy mean of what was
    said plus 1/2

        C <- C * exp(-rate * (b - quantile))

    Attributes:
        clip: the bound C of the next round.
        quantile: the share of updates that is to stay as it is; one half is the median.
        rate: how fast the bound moves; 0.2 in the paper.
        count_noise: the standard deviation of the noise on the sum of what was said; a twentieth of the sites of a
            round in the paper.
    """

    clip: float
    count_noise: float
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that cannot be right."""
        check_positive(clip=self.clip, count_noise=self.count_noise, rate=self.rate)
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile is {self.quantile}: it should be between 0 and 1")

    def update_noise(self, noise_multiplier: float) -> float:
        """Return the multiplier of the noise on updates, with which both releases together cost `noise_multiplier`.

        It is (z^-2 - (2 s)^-2)^(-1/2) with z the multiplier and s `count_noise` (theorem 1 of the paper): what is said
        changes the sum by at most 1/2. Raises ValueError where the count alone would cost as much.
        """
        rest = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if rest <= 0:
            raise ValueError(
                f"count_noise is {self.count_noise}: with a noise multiplier of {noise_multiplier} it should be above "
                f"{noise_multiplier / 2}, as the count is paid from the same budget"
            )
        return rest**-0.5

    def next(self, norms: Iterable[float], planned: int, noise: Noise) -> "AdaptiveClip":
        """Return the bound of the next round, from the norms of this one's updates before they were clipped.

        A site that was planned and did not come says nothing, which is 0.
        """
        check_positive(planned=planned)
        said = sum(0.5 if value <= self.clip else -0.5 for value in norms)
        share = (said + self.count_noise * float(noise.normal(1)[0])) / planned + 0.5
        clip = self.clip * math.exp(-self.rate * (share - self.quantile))
        return AdaptiveClip(clip, self.count_noise, self.quantile, self.rate)


def _doubles(change: Tensors) -> Iterable[tuple[str, np.ndarray]]:
    return ((name, tensor.astype(np.float64)) for name, tensor in change.items())


def _scale(value: float, limit: float) -> float:
    return 1.0 if value <= limit else limit / value
