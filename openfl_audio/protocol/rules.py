"""Rules by which a round's updates become one: mean, median, trimmed mean and geometric median.

A rule works on flat arrays: one tensor of the model, or a slice of one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from openfl_audio.protocol.part import Part
from openfl_audio.protocol.values import BLOCK

# Weiszfeld's iteration ends when the pulls of the updates balance to within this share of their sum. The median is then
# known to about a millionth of the distance between updates, finer than float32 resolves the parameters themselves.
TOLERANCE = 1e-6
# Tens of iterations are usual. Only between optima that are nearly tied does it creep, and there every point on the way
# is nearly as good, so it may stop. An iteration works on inner products: microseconds, whatever the tensor's size.
MAX_ITERATIONS = 1000
# Squared distances are differences of float64 sums; below this share of what was summed they are rounding error.
ROUNDING = 1e-12
# Small enough for the processor's cache: what lies between two passes over an array need not go through memory.
CACHED_ITEMS = 1 << 17
# An exact factor that keeps a sum over up to 2^30 clips within the range of float32.
WEIGHT_UNIT = 2.0**-30


class _Rule(Part):
    """Base of the rules by which updates become one.

    `combine` takes flat arrays of one length. A `weighted` rule also looks at weights; `whole_tensors` says that a rule
    needs all of a tensor at once.
    """

    whole_tensors: ClassVar[bool] = False

    def check_number(self, updates: int) -> None:
        """Raise ValueError if the rule cannot keep its promise with so few `updates`."""


class RunningMean:
    """Weighted mean of flat arrays of one length, from the sum of their differences to `origin`, as they come.

    The sum is in the type of `origin`, at least float32: with half the memory of float64 to go through it takes half
    the time. Its rounding errors are, of n arrays, at most n * 1e-7 of the mean size of the differences. Arrays that
    are all like `origin` have that as their mean, and one alone has itself, to the bit. The order matters to the last
    bit, and nothing else does: not how an array is cut into slices.
    """

    def __init__(self, origin: np.ndarray) -> None:
        """Begin a mean around `origin`.

        `origin` is not copied: it may change between the result of one mean and the first array of the next.
        """
        self._origin = origin
        dtype = np.result_type(origin, np.float32)
        self._total, self._first = np.empty(len(origin), dtype), np.empty(len(origin), dtype)
        self._weights: list[float] = []

    def add(self, update: np.ndarray, weight: float) -> None:
        """Add an array. `update` is read and not kept."""
        first = not self._weights
        if first:
            self._first[:] = update
        self._weights.append(weight)
        dtype = np.result_type(update, self._total)
        buffer = np.empty(min(CACHED_ITEMS, len(update)), self._total.dtype)
        for start in range(0, len(update), CACHED_ITEMS):
            block = slice(start, start + CACHED_ITEMS)
            total = self._total[block]
            out = total if first else buffer[: len(total)]
            difference = np.subtract(update[block], self._origin[block], out=out, dtype=dtype)
            difference *= weight * WEIGHT_UNIT
            if not first:
                total += difference

    def result(self) -> np.ndarray:
        """Return the mean, in this object's own memory: it is valid until the next `add`, which begins a new mean.

        Raises ValueError if the weights do not add up to more than 0.
        """
        divisor = _sum_of(self._weights) * WEIGHT_UNIT
        alone = len(self._weights) == 1
        self._weights = []
        if alone:
            return self._first
        self._total /= divisor
        self._total += self._origin
        return self._total


class Mean(_Rule):
    """Mean of the updates; weighted by clips, this is FedAvg: McMahan et al. 2017, arXiv 1602.05629, algorithm 1.

    A mean does not resist a dishonest envoy: it moves the mean as far as it likes, and further with the clips that it
    claims.
    """

    rule: Literal["mean"] = Field(default="mean", description="mean of the updates")
    weighted: bool = Field(default=True, description="weigh updates by their clips, which is FedAvg")

    def combine(self, updates: Iterable[np.ndarray], weights: Sequence[float], current: np.ndarray) -> np.ndarray:
        """Return the mean of `updates`, flat and of one length, as summed by RunningMean. They are taken one at a time.

        Raises ValueError if updates and weights differ in number, or the weights do not add up to more than 0.
        """
        mean = RunningMean(current)
        for update, weight in zip(updates, weights, strict=True):
            mean.add(update, weight if self.weighted else 1.0)
        return mean.result()


class Median(_Rule):
    """Median of each coordinate; weights do not count: Yin et al. 2018, arXiv 1803.01498, definition 1."""

    rule: Literal["median"] = Field(default="median", description="median of each value; weights do not count")
    weighted: ClassVar[bool] = False

    def combine(self, updates: Iterable[np.ndarray], weights: Sequence[float], current: np.ndarray) -> np.ndarray:
        """Return the median of `updates`, flat and of one length, as float64 of that length.

        Of an even number of values it is the mid-point of the two in the middle. Raises ValueError if there are no
        updates.
        """
        return _median(np.stack(list(updates)))


class TrimmedMean(_Rule):
    """Mean of each coordinate without its extremes; weights do not count: Yin et al. 2018, definition 2.

    `share` of the values is cut off at each end, rounded down: of 10 updates, 0.1 and 0.19 drop the lowest and the
    highest value, 0.2 drops two of each. A round with so few updates that nothing would be cut off is refused.
    """

    rule: Literal["trimmed_mean"] = Field(
        default="trimmed_mean", description="mean of each value without its extremes; weights do not count"
    )
    weighted: ClassVar[bool] = False
    share: float = Field(ge=0, lt=0.5, description="share of the updates that is cut off at each end, rounded down")

    def check_number(self, updates: int) -> None:
        """Raise ValueError if nothing would be cut off of so few `updates`.

        That would be a mean, which does not resist a dishonest envoy.
        """
        if self.share == 0:
            raise ValueError("trimmed_mean with share 0 cuts nothing off: give a share above 0, or the mean")
        if self._cut(updates) == 0:
            least = max(3, math.ceil(round(1 / self.share, 6)))
            raise ValueError(
                f"trimmed_mean with share {self.share} cuts nothing off {updates} updates, and so resists no "
                f"dishonest envoy: it takes {least} updates"
                + (f", or a share of at least 1/{updates}" if updates > 2 else "")
            )

    def _cut(self, updates: int) -> int:
        # round: 0.29 * 100 is 28.999999999999996. min: which could make a half of a share just below it.
        return min(math.floor(round(self.share * updates, 9)), (updates - 1) // 2)

    def combine(self, updates: Iterable[np.ndarray], weights: Sequence[float], current: np.ndarray) -> np.ndarray:
        """Return the trimmed mean of `updates`, flat and of one length, as float64 of that length.

        Raises ValueError if there are no updates.
        """
        stack = np.stack(list(updates))  # (n, length)
        return _mean_of_the_middle(stack, cut=self._cut(len(stack)))


class GeometricMedian(_Rule):
    """Point with the least sum of distances to the updates, for each tensor by itself.

    It resists dishonest envoys as long as they have less than half of the weight. With `weighted`, distances count by
    clips, which are the envoys' own word.

    Pillutla et al. 2019, arXiv 1912.13445, by Weiszfeld's algorithm until it converges. OpenFL's geometric median is
    another point: it ends after 4 iterations, and each of them reweights the weights of the one before, not the clips.
    Where an update itself is the median, the result is exactly that update.
    """

    rule: Literal["geometric_median"] = Field(
        default="geometric_median", description="point with the least sum of distances to the updates, tensor by tensor"
    )
    weighted: bool = Field(default=False, description="weigh distances by clips")
    whole_tensors: ClassVar[bool] = True

    def combine(self, updates: Iterable[np.ndarray], weights: Sequence[float], current: np.ndarray) -> np.ndarray:
        """Return the geometric median of `updates`, each a whole flat tensor, as float64 of the same length.

        Raises ValueError if updates and weights differ in number, or the weights do not add up to more than 0.
        """
        shares = np.asarray(weights, np.float64) / _sum_of(weights)
        if not self.weighted:
            shares = np.full(len(shares), 1 / len(shares))
        stack = np.stack(list(updates))  # (n, length)
        return _weighted_sum(stack, _geometric_median(_inner_products(stack), shares))


Rule = Annotated[Mean | Median | TrimmedMean | GeometricMedian, Field(discriminator="rule")]


def _sum_of(weights: Sequence[float]) -> float:
    total = sum(weights)
    if not total > 0:
        raise ValueError(f"the weights of {len(weights)} updates add up to {total}: there is nothing to combine")
    return total


def _mean_of_the_middle(stack: np.ndarray, cut: int) -> np.ndarray:
    """Return the mean of each column of `stack` (n, length) without `cut` values at each end. Sorts `stack`."""
    stack.sort(axis=0)
    rows = stack[cut : len(stack) - cut]
    return _weighted_sum(rows, np.ones(len(rows))) / len(rows)


def _median(stack: np.ndarray) -> np.ndarray:
    """Return the median of each column of `stack` (n, length). Sorts `stack`."""
    return _mean_of_the_middle(stack, cut=(len(stack) - 1) // 2)


def _weighted_sum(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum of `rows` (n, length), each times its weight, as float64 of that length."""
    # Not weights @ rows: how NumPy orders a sum depends on the shape, and so would the last bit.
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total += np.multiply(row, weight, dtype=np.float64)
    return total


def _inner_products(stack: np.ndarray) -> np.ndarray:
    """Return the inner products (n, n) of the rows of `stack` (n, length), seen from their coordinate median.

    The median is near to most of them wherever a few are; from far away, rounding hides short distances.
    """
    products = np.zeros((len(stack), len(stack)))
    for start in range(0, stack.shape[1], BLOCK):
        block = stack[:, start : start + BLOCK]
        block = block - _median(block.copy())
        # Not block @ block.T: with a hundred rows its last bits depend on the number of threads.
        for index, row in enumerate(block):
            products[index, index:] += np.einsum("jl,l->j", block[index:], row)
    return products + np.triu(products, 1).T


def _geometric_median(products: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return coefficients (n,), with sum 1, of the geometric median of n points.

    They follow from the points' inner products and weights: every iterate is a combination of the points, so distances
    to it follow from inner products, and one pass over the data does for all iterations.
    """
    squares = np.diag(products)
    apart = squares[:, None] + squares - 2 * products  # squared distances (n, n)
    apart[apart <= ROUNDING * (squares[:, None] + squares)] = 0
    for index, point in enumerate(np.eye(len(shares))):
        if _is_the_median(point, apart[index], products, shares):
            return point
    coefficients = shares  # the mean
    nearest = ROUNDING * apart[apart > 0].min()  # keeps an iterate that hits a point from dividing by 0
    for _ in range(MAX_ITERATIONS):
        towards = _dot(products, coefficients)
        pulls = shares / np.sqrt(np.maximum(squares - 2 * towards + _dot(towards, coefficients), nearest))
        imbalance = _length(pulls - pulls.sum() * coefficients, products)
        coefficients = pulls / pulls.sum()
        if imbalance <= TOLERANCE:
            break
    return coefficients


def _is_the_median(point: np.ndarray, apart: np.ndarray, products: np.ndarray, shares: np.ndarray) -> bool:
    """Tell whether `point` is the median: the others together pull less than it weighs.

    Vardi and Zhang 2000, PNAS 97(4). A tie does not make it one: two points of equal weight meet halfway.
    """
    elsewhere = apart > 0
    pulls = np.where(elsewhere, shares, 0) / np.sqrt(np.where(elsewhere, apart, 1))
    return _length(pulls - pulls.sum() * point, products) < shares[~elsewhere].sum() * (1 - TOLERANCE)


def _length(coefficients: np.ndarray, products: np.ndarray) -> float:
    return math.sqrt(max(float(_dot(_dot(products, coefficients), coefficients)), 0.0))


def _dot(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return rows @ vector, the same to the last bit whatever the number of threads."""
    return (rows * vector).sum(-1)
