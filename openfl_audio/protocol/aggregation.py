"""Aggregation of a round's updates into the next global model: clipping, an aggregation rule, a server optimizer.

Everything here works on flat arrays: one tensor of the model, or a slice of one. The choice travels as JSON inside an
experiment's plan.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from openfl.utilities.optimizers.numpy import NumPyAdagrad, NumPyAdam, NumPyYogi
from pydantic import BaseModel, ConfigDict, Field

from openfl_audio.errors import NotFiniteError
from openfl_audio.protocol.tensors import Tensors

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
# Columns of all updates that a norm and the geometric median take at a time; ten updates are 5 MB in float64.
BLOCK = 1 << 16


# Values further out than this would overflow in sums and squares of float32. No weight of a network comes near it.
LARGEST_VALUE = 1e15


class _Part(BaseModel):
    # Infinity would not come back from JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Rule(_Part):
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


class _ServerOptimizer(_Part):
    """Base of server optimizers, which step from the global model towards what the rule made of the updates.

    Their state from round to round is named by `slots`: float32 arrays of the model's shapes.
    """

    slots: ClassVar[tuple[str, ...]]
    learning_rate: float = Field(default=0.01, gt=0, description="learning rate of the server optimizer")

    def initial_value(self, slot: str) -> float:
        """Return the value that fills the arrays of `slot` before the first round."""
        raise NotImplementedError

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Step from `current`, the global model, towards `combined`, what the rule made of the updates.

        Both are flat and of one length. `state` holds an array of that length for each slot, `steps_before` counts the
        rounds it has seen. Returns the next values in float64 and the next state in float32; the arguments stay as they
        are.
        """
        raise NotImplementedError


Beta = Annotated[float, Field(ge=0, lt=1)]


class _AdaptiveOptimizer(_ServerOptimizer):
    """Base of the optimizers of Reddi et al. 2020, arXiv 2003.00295, algorithm 2.

    With d = combined - current:

        m = beta1 * m + (1 - beta1) * d
        v = what the optimizer makes of v and d^2
        next = current + learning_rate * m / (sqrt(v) + epsilon)

    m starts at 0 and v at epsilon^2; nothing corrects the bias of either. `epsilon` is the paper's tau. The defaults of
    epsilon and betas are those of its experiments (appendix D.2).
    """

    epsilon: float = Field(
        default=1e-3, gt=0, description="what is added to the root of the second moment; tau of the paper"
    )

    def initial_value(self, slot: str) -> float:
        return self.epsilon**2 if slot == "second_moment" else 0.0

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        change = np.subtract(combined, current, dtype=np.float64)
        moments = self.next_moments({slot: state[slot].astype(np.float64) for slot in self.slots}, change)
        first, second = moments.get("first_moment", change), moments["second_moment"]
        values = current + self.learning_rate * first / (np.sqrt(second) + self.epsilon)
        return values, {slot: moments[slot].astype(np.float32) for slot in self.slots}

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError


class FedAdam(_AdaptiveOptimizer):
    """FedAdam of Reddi et al.: v = beta2 * v + (1 - beta2) * d^2."""

    slots = ("first_moment", "second_moment")
    optimizer: Literal["adam"] = Field(default="adam", description="FedAdam of Reddi et al.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="decay of first and second moment")

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next m and v."""
        first = _decayed(moments["first_moment"], change, self.betas[0])
        return {"first_moment": first, "second_moment": _decayed(moments["second_moment"], change**2, self.betas[1])}


class FedYogi(_AdaptiveOptimizer):
    """FedYogi of Reddi et al.: v = v - (1 - beta2) * d^2 * sign(v - d^2)."""

    slots = ("first_moment", "second_moment")
    optimizer: Literal["yogi"] = Field(default="yogi", description="FedYogi of Reddi et al.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="decay of first and second moment")

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next m and v."""
        first = _decayed(moments["first_moment"], change, self.betas[0])
        before, square = moments["second_moment"], change**2
        second = before - (1 - self.betas[1]) * square * np.sign(before - square)
        return {"first_moment": first, "second_moment": second}


class FedAdagrad(_AdaptiveOptimizer):
    """FedAdagrad of Reddi et al.: v = v + d^2, and m = d, as beta1 is 0 in the paper's experiments."""

    slots = ("second_moment",)
    optimizer: Literal["adagrad"] = Field(default="adagrad", description="FedAdagrad of Reddi et al.")

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next m and v."""
        return {"second_moment": moments["second_moment"] + change**2}


class _OpenFLOptimizer(_ServerOptimizer):
    """Base of OpenFL's optimizers, with OpenFL's constants: for runs that are to be compared with OpenFL's.

    Every slot starts at `initial_accumulator_value`.
    """

    openfl_class: ClassVar[type[NumPyAdam] | type[NumPyAdagrad]]
    initial_accumulator_value: float = Field(default=0.0, ge=0, description="value that the moments start at")

    def initial_value(self, slot: str) -> float:
        return self.initial_accumulator_value

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        name = "slice"
        values = current.astype(np.float64)  # a copy, as OpenFL steps in place
        optimizer = self.openfl_class(params={name: values}, **self.model_dump(exclude={"optimizer"}))
        for slot in self.slots:
            getattr(optimizer, f"grads_{slot}")[name] = state[slot].astype(np.float64)
        optimizer.current_step = {name: steps_before}  # Adagrad does not look at it
        optimizer.step({name: values - combined})
        return values, {slot: getattr(optimizer, f"grads_{slot}")[name].astype(np.float32) for slot in self.slots}


class OpenFLAdam(_OpenFLOptimizer):
    """OpenFL's Adam. Unlike FedAdam, it corrects the bias of both moments."""

    openfl_class = NumPyAdam
    slots = ("first_moment", "second_moment")
    optimizer: Literal["openfl_adam"] = Field(default="openfl_adam", description="Adam as OpenFL has it")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="decay of first and second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="what is added to the root of the second moment")


class OpenFLYogi(_OpenFLOptimizer):
    """OpenFL's Yogi: OpenFLAdam with another second moment, v = beta2 * v + (1 - beta2) * sign(d^2 - v) * d^2.

    It can fall below 0 where beta2 is below 0.5, so that is refused.
    """

    openfl_class = NumPyYogi
    slots = ("first_moment", "second_moment")
    optimizer: Literal["openfl_yogi"] = Field(default="openfl_yogi", description="Yogi as OpenFL has it")
    betas: tuple[Beta, Annotated[float, Field(ge=0.5, lt=1)]] = Field(
        default=(0.9, 0.999), description="decay of first and second moment"
    )
    epsilon: float = Field(default=1e-8, gt=0, description="what is added to the root of the second moment")


class OpenFLAdagrad(_OpenFLOptimizer):
    """OpenFL's Adagrad: no first moment, and a v that starts at `initial_accumulator_value`."""

    openfl_class = NumPyAdagrad
    slots = ("squared",)
    optimizer: Literal["openfl_adagrad"] = Field(default="openfl_adagrad", description="Adagrad as OpenFL has it")
    initial_accumulator_value: float = Field(default=0.1, ge=0, description="value that the squares start at")
    epsilon: float = Field(default=1e-10, gt=0, description="what is added to the root of the squares")


ServerOptimizer = Annotated[
    FedAdam | FedYogi | FedAdagrad | OpenFLAdam | OpenFLYogi | OpenFLAdagrad, Field(discriminator="optimizer")
]


class Aggregation(_Part):
    """Aggregation of a round's updates, in this order: clip each, combine them, step.

    With `max_share` a larger weight counts as much as makes it just that share; where there are fewer than 1 /
    max_share updates, all weigh the same.
    """

    rule: Rule = Field(
        default=Mean(),
        description="rule that combines the updates; without a server optimizer, the result is the next model",
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="bound on an update's distance from the global model: McMahan et al. 2017, arXiv 1710.06963",
    )
    server_optimizer: ServerOptimizer | None = Field(
        default=None, description="optimizer that steps from the global model towards what the rule made of the updates"
    )
    max_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="bound on one update's share of the weight of a round; a larger weight counts as just that",
    )

    def weights(self, clips: Sequence[int]) -> list[float]:
        """Return the weight of each update by the clips it was trained on, once `max_share` has been applied."""
        if self.max_share is None or not self.rule.weighted:
            return list(clips)
        # From the largest on: the first `capped` of them weigh `limit`, which is max_share of the sum that results.
        largest_first, rest = sorted(clips, reverse=True), sum(clips)
        for capped, largest in enumerate(largest_first):
            if capped * self.max_share >= 1:
                break
            limit = self.max_share * rest / (1 - capped * self.max_share)
            if largest <= limit:
                return [min(weight, limit) for weight in clips]
            rest -= largest
        return [float(largest_first[-1])] * len(clips)

    def clip_scales(self, norms: Sequence[float]) -> list[float]:
        """Return the factor by which each update is shortened, 1.0 for not at all: min(1, clip_norm / norm).

        A norm is the L2 norm of update - global model over all trained parameters together.
        """
        if self.clip_norm is None:
            return [1.0] * len(norms)
        return [min(1.0, self.clip_norm / norm) if norm > 0 else 1.0 for norm in norms]


def clipped(current: np.ndarray, update: np.ndarray, scale: float) -> np.ndarray:
    """Return current + scale * (update - current) in float64; at scale 1 `update` itself, without a copy."""
    if scale == 1:
        return update
    moved = np.subtract(update, current, dtype=np.float64)
    moved *= scale
    moved += current
    return moved


def distance(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the Euclidean norm of update - current over all `pairs` of current and update, flat and of one length.

    The result depends neither on the order of the pairs nor on how they are cut into pieces, as long as these begin at
    multiples of BLOCK items: blocks are summed by themselves, and their sums exactly. A dot product would not do, as
    its last bits depend on the number of threads.
    """
    squares = []
    for current, update in pairs:
        for start in range(0, len(current), BLOCK):
            block = slice(start, start + BLOCK)
            change = np.subtract(update[block], current[block], dtype=np.float64)
            squares.append(float(np.square(change, out=change).sum()))
    return math.sqrt(math.fsum(squares))


def magnitude(values: np.ndarray) -> float:
    """Return a number that no value of `values`, flat and floating, exceeds; NaN or infinity if one of them is.

    It is their length, or the largest of them where that overflows.
    """
    # The squares' sum is finite only if all values are, and takes one pass. It may also overflow: then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float32) if values.dtype == np.float16 else values
        squares = float(np.dot(wide, wide))
        return math.sqrt(squares) if math.isfinite(squares) else float(np.abs(wide).max())


def is_finite(values: np.ndarray) -> bool:
    """Tell whether all of `values`, flat and floating, are numbers."""
    return math.isfinite(magnitude(values))


def is_too_large(values: np.ndarray, current: np.ndarray) -> bool:
    """Tell whether one of `values` is beyond LARGEST_VALUE.

    A value that is the global model's own, as that of a constant may be, does not count.
    """
    return bool(((np.abs(values) > LARGEST_VALUE) & (values != current.astype(values.dtype))).any())


def narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `values`, flat, of the next global model in its own type.

    Raises NotFiniteError if one of them does not fit.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(dtype, copy=False)
    if narrow.dtype.kind == "f" and not is_finite(narrow):
        raise NotFiniteError(
            "the next global model, or its server optimizer's state, would hold NaN or infinity although every update "
            "is finite: lower the server optimizer's learning rate"
        )
    return narrow


def are_finite(tensors: Tensors) -> bool:
    """Tell whether all floating tensors hold nothing but numbers, whatever their shapes."""
    return all(is_finite(tensor.reshape(-1)) for tensor in tensors.values() if tensor.dtype.kind == "f")


def _decayed(average: np.ndarray, value: np.ndarray, beta: float) -> np.ndarray:
    return beta * average + (1 - beta) * value


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
