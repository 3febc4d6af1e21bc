"""Site level without a trusted director: changes as integers with a share of the noise each, of which a sum is known.

The mechanism is the distributed discrete Gaussian of Kairouz, Liu & Steinke (arXiv 2102.06387, algorithms 1 and 2).
With a site's change d, the bound C (`clip`) and a step g that all know, the site

    clips      x = d * min(1, C / |d|)                     the whole change at once
    rotates    y = rotation(x) / g                         see `rotation`
    rounds     q = floor(y + u), u random in [0, 1)        until |q|^2 <= B, see below
    adds       q + N, N discrete Gaussian of deviation s   see `discrete_gaussian`

and masks that. The director learns the sum over the sites that came, rotates it back, and divides it by the number that
was planned. Of the sites that came at least h are honest: their noise has the deviation sqrt(h) * s, and as q is an
integer vector of norm sqrt(B) at most, the noise multiplier z of the plan is kept with

    B = h * s^2 / z^2

Rounding makes a norm larger. That |q|^2 > B happens with a probability of at most b, says proposition 22 of the paper,
if with k values in all

    (C / g)^2 + k / 4 + sqrt(2 ln(1 / b)) * (C / g + sqrt(k) / 2) <= B

from which g follows. Floating point is of no consequence for privacy: B is looked at in integers, and so is the noise
drawn. Skellam noise (Agarwal, Kairouz & Liu, arXiv 2110.04995) has sums that are Skellam again, but no sampler as
simple that is exact. Here s is so large that sums of discrete Gaussians are as good as discrete Gaussians: see
`accounting.summed_multiplier`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.discrete_gaussian import DEVIATION, discrete_gaussian
from openfl_audio.privacy.fixed_point import WORD, Rounding
from openfl_audio.privacy.noise import Noise
from openfl_audio.privacy.rotation import ROW, Rotation
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.tensors import Header

# Values that are worked on at a time.
BLOCK = 16 * ROW
THREADS = 2
# The probability b that an update is rounded once more. What is refused moves the mean by less than that.
TOO_LONG = 2.0**-30
# By chance alone no update needs three.
MOST_ROUNDINGS = 20
# A value of the sum is beyond so many standard deviations with a probability of at most 2 exp(-50), 4e-22.
DEVIATIONS = 10
Block = Callable[[str, int, int], np.ndarray]


class NoisySum:
    """Words that changes of trained tensors become in one round, and the mean that follows from their sum.

    Attributes:
        length: the number of words: that of all values, in whole rows of the rotation.
    """

    def __init__(self, plan: ExperimentPlan, sizes: Mapping[str, int], round_number: int = 0) -> None:
        """Begin a round of a plan with privacy of sites and secure aggregation; `sizes` are of trained tensors.

        Raises PrivacyError if the sum would not fit into its words, or the noise drown the step.
        """
        level = plan.privacy
        honest = plan.honest_survivors
        if not isinstance(level, SiteLevel) or honest is None:
            raise PrivacyError("the plan has no privacy of sites by secure aggregation")
        self._names = sorted(sizes)
        ends = np.cumsum([sizes[name] for name in self._names]).tolist()
        self._starts = [0, *ends[:-1]]
        self._total = ends[-1] if ends else 0
        self.length = -(-self._total // ROW) * ROW
        self._planned = len({*(plan.envoys or ())})
        self._bound = honest * DEVIATION**2 / level.noise_multiplier**2
        steps = _steps_within(self._bound, self.length)
        if not steps >= 1:
            raise PrivacyError(
                f"noise_multiplier is {level.noise_multiplier:g}: over {self.length} values rounding alone is as large "
                "as the changes, give less noise"
            )
        self._check_words(steps, level.noise_multiplier)
        self._clip, self._step = level.clip, level.clip / steps
        self._rotation = Rotation(plan.participation.seed, round_number)

    @classmethod
    def of(cls, plan: ExperimentPlan, model: Header, round_number: int = 0) -> "NoisySum":
        """Return that of a model with this header."""
        untrained = {*plan.untrained}
        sizes = {name: e.count for name, e in model.entries.items() if e.is_float and name not in untrained}
        return cls(plan, sizes, round_number)

    def _check_words(self, steps: float, noise_multiplier: float) -> None:
        """Raise PrivacyError unless the sum is known from what is left of it modulo the size of a word."""
        variance = self._planned**2 * steps**2 / ROW + self._planned * (DEVIATION**2 + 1 / 4)
        bits = 8 * WORD.itemsize
        if max(DEVIATIONS * math.sqrt(variance), steps) >= 2 ** (bits - 1):
            raise PrivacyError(
                f"noise_multiplier is {noise_multiplier:g}: with so little noise a sum of {self._planned} sites does "
                f"not fit into {bits} bits, give more"
            )

    def encode(self, change: Block, norm: float, rounding: Rounding, noise: Noise) -> np.ndarray:
        """Return the words of an update with its share of the noise.

        `change(name, first, last)` returns a part of a trained tensor's change, flat, and `norm` is that of all. Raises
        PrivacyError if no rounding is within the norm that the noise is for.
        """
        scale = (1.0 if norm <= self._clip else self._clip / norm) / self._step
        for attempt in range(MOST_ROUNDINGS):
            rounded = self._rounded(change, scale, rounding, attempt * self.length)
            if self._is_within(rounded):
                return self._with_noise(rounded, noise)
        raise PrivacyError(f"a change of norm {norm:g} is longer than its noise is for, however it is rounded")

    def _with_noise(self, rounded: np.ndarray, noise: Noise) -> np.ndarray:
        """Return `rounded` as words, with a site's share of the noise."""
        starts = range(0, self.length, BLOCK)

        def add_noise(start: int, stream: Noise) -> None:
            part = rounded[start : start + BLOCK]
            part += discrete_gaussian(stream, len(part)).astype(np.int32)

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(add_noise, starts, noise.parts(len(starts))):
                continue
        return rounded.view(WORD)

    def _rounded(self, change: Block, scale: float, rounding: Rounding, place: int) -> np.ndarray:
        """Return what the rotated change is rounded to, int32, with the random numbers from `place` on."""
        rounded = np.empty(self.length, np.int32)

        def work(start: int) -> None:
            last = min(start + BLOCK, self.length)
            values = self._gather(change, start, last)
            values *= scale
            values = self._rotation.turn(values, start)
            values += rounding.uniform(place + start, last - start)
            rounded[start:last] = np.floor(values)

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(work, range(0, self.length, BLOCK)):
                continue
        return rounded

    def _is_within(self, rounded: np.ndarray) -> bool:
        """Tell whether the norm is one that the noise is for, by integers alone."""
        blocks = (rounded[start : start + BLOCK].astype(np.int64) for start in range(0, len(rounded), BLOCK))
        return sum(int(np.dot(block, block)) for block in blocks) <= self._bound

    def _gather(self, change: Block, start: int, last: int) -> np.ndarray:
        """Return the changes of the values from `start` on, float64: tensors by name, and zeros behind the last one."""
        values = np.zeros(last - start)
        at = max(bisect_right(self._starts, start) - 1, 0)
        for name, begin, end in zip(
            self._names[at:], self._starts[at:], [*self._starts[at + 1 :], self._total], strict=True
        ):
            if begin >= last:
                break
            first, until = max(start, begin), min(last, end)
            values[first - start : until - start] = change(name, first - begin, until - begin)
        return values

    def rows_of(self, name: str, first: int, number: int) -> tuple[int, int]:
        """Return from and up to which place of the words there are rows with values `first` on of a tensor."""
        place = self._place(name) + first
        return place // ROW * ROW, -(-(place + number) // ROW) * ROW

    def decode(self, total: np.ndarray, name: str, first: int, number: int) -> np.ndarray:
        """Return the mean change, float64, of `number` values of a tensor, from the sum of the words of `rows_of`."""
        start, _ = self.rows_of(name, first, number)
        place = self._place(name) + first - start
        values = self._rotation.undo(total.view("<i4").astype(np.float64), start)
        return values[place : place + number] * (self._step / self._planned)

    def _place(self, name: str) -> int:
        return self._starts[self._names.index(name)]


def _steps_within(bound: float, length: int) -> float:
    """Return how many steps the bound on a change may have, so that its rounding keeps to `bound`; NaN for none.

    It solves the inequality of the module's head for C / g.
    """
    slack = math.sqrt(2 * math.log(1 / TOO_LONG))
    rest = bound - length / 4 - slack * math.sqrt(length) / 2
    return (math.sqrt(slack**2 + 4 * rest) - slack) / 2 if rest > 0 else math.nan
