"""Aggregation of updates into the next global model, in memory.

The director does the same with files: `openfl_audio.director.aggregate`.
"""

import math
from collections.abc import Callable, Container

import numpy as np

from openfl_audio.errors import TooLargeError, UpdateRefusedError
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.low_rank import ERROR, Product, combine_adapters, find_pairs, is_given, lost_share
from openfl_audio.protocol.rules import Mean, RunningMean
from openfl_audio.protocol.tensors import Header, Tensors
from openfl_audio.protocol.values import LARGEST_VALUE, clipped, distance, is_too_large, magnitude, narrowed


# This loop and the director's have one arithmetic and opposite orders. Here updates come one by one and are gone
# afterwards: the outer loop is over updates, and their sum is kept, as large as a model. The director has all updates
# on disk: its outer loop is over slices, on threads, and it never holds a model. One loop for both would have to keep
# every update of a simulated round, or to read and write the director's sums once for each update.
class Aggregator:
    """The next global model, aggregated in memory.

    Updates are added up as they come, in the memory of two models whatever their number; rules other than the mean, and
    a bounded share of the weight, keep a copy of each. The result depends on their order, to the last bit.

    Attributes:
        model: the global model after `aggregations` rounds.
        moments: the state of the server optimizer, by "SLOT.NAME".
    """

    def __init__(
        self,
        model: Tensors,
        aggregation: Aggregation,
        untrained: Container[str] = (),
        moments: Tensors | None = None,
        aggregations: int = 0,
    ) -> None:
        self.model = {name: tensor.copy() for name, tensor in model.items()}
        self.aggregation = aggregation
        self.moments = dict(moments or {})
        self.aggregations = aggregations
        self._floats = [name for name, tensor in model.items() if tensor.dtype.kind == "f"]
        self._parameters = {name for name in self._floats if name not in untrained}
        self._sent = [name for name in self._floats if not is_given(name)]
        pairs = find_pairs(self._floats) if aggregation.product_rule else []
        self._paired = {name for pair in pairs for name in pair.names}
        # Views of the model: when it has changed, so has what the next mean begins with.
        self._means = {name: RunningMean(self.model[name].reshape(-1)) for name in self._sent}
        self._counters: Tensors = {}
        self._kept: list[tuple[Tensors, int]] = []

    def add(self, update: Tensors, clips: int, error_prefix: str) -> None:
        """Take in the update of one client that trained on `clips` clips. Its arrays may change afterwards.

        Raises UpdateRefusedError, which begins with `error_prefix`, if a tensor holds NaN or infinity, or is too large.
        """
        for name in self._sent:
            check_tensor(name, update[name].reshape(-1), self.model[name].reshape(-1), error_prefix)
        for name in update.keys() - set(self._floats):
            # Integers are counters, such as a batch norm's number of batches.
            self._counters[name] = np.maximum(self._counters.get(name, update[name]), update[name])
        update = self._clipped({name: update[name].reshape(-1) for name in self._sent})
        rule = self.aggregation.rule
        if isinstance(rule, Mean) and self._adds_at_once:
            for name in self._sent:
                self._means[name].add(update[name], clips if rule.weighted else 1.0)
        else:
            self._kept.append(({name: values.copy() for name, values in update.items()}, clips))

    def finish_round(self) -> dict[str, float]:
        """Make the next global model, in place, from what was added.

        Returns what a round's record says of it: nothing, or the `low_rank.ERROR` of adapters.
        """
        products = self._combine_adapters()
        for name in self._sent:
            if name in self._paired:
                continue
            tensor = self.model[name].reshape(-1)
            values = self._combined(name, tensor)
            if name in self._parameters:
                values = self._step(name, tensor, values)
            tensor[:] = narrowed(values, tensor.dtype)
        for product in products:
            for name, values in product.tensors.items():
                self.model[name][...] = narrowed(values.reshape(-1), self.model[name].dtype).reshape(values.shape)
        for name, counter in self._counters.items():
            self.model[name][...] = counter
        self.aggregations += 1
        self._counters, self._kept = {}, []
        return {ERROR: lost_share(products)} if products else {}

    def _combine_adapters(self) -> list[Product]:
        rule = self.aggregation.product_rule
        if rule is None:
            return []

        def reader(update: Tensors) -> Callable[[str], np.ndarray]:
            return lambda name: update[name].reshape(self.model[name].shape)

        weights = self.aggregation.weights([clips for _, clips in self._kept])
        readers = [reader(update) for update, _ in self._kept]
        return list(combine_adapters(rule, self._paired, lambda name: self.model[name], readers, weights))

    @property
    def _adds_at_once(self) -> bool:
        """Tell whether an update's weight is known before the others are."""
        return isinstance(self.aggregation.rule, Mean) and self.aggregation.max_share is None

    def _combined(self, name: str, current: np.ndarray) -> np.ndarray:
        if self._adds_at_once:
            return self._means[name].result()
        weights = self.aggregation.weights([clips for _, clips in self._kept])
        return self.aggregation.rule.combine((update[name] for update, _ in self._kept), weights, current)

    def _step(self, name: str, current: np.ndarray, combined: np.ndarray) -> np.ndarray:
        optimizer = self.aggregation.server_optimizer
        if optimizer is None:
            return combined
        state = {}
        for slot in optimizer.slots:
            initial = np.full(len(current), optimizer.initial_value(slot), np.float32)
            state[slot] = self.moments.get(f"{slot}.{name}", initial)
        values, state = optimizer.step(current, combined, state, self.aggregations)
        state = {slot: narrowed(moment, moment.dtype) for slot, moment in state.items()}
        self.moments |= {f"{slot}.{name}": moment for slot, moment in state.items()}
        return values

    def _clipped(self, update: Tensors) -> Tensors:
        """Return `update` as near to the model as the aggregation wants it. What is not trained stays as it is."""
        if self.aggregation.clip_norm is None:
            return update
        current = {name: self.model[name].reshape(-1) for name in self._parameters if not is_given(name)}
        norm = distance((values, update[name]) for name, values in current.items())
        (scale,) = self.aggregation.clip_scales([norm])
        return update | {name: clipped(values, update[name], scale) for name, values in current.items()}


def check_tensor(name: str, values: np.ndarray, current: np.ndarray, error_prefix: str) -> None:
    """Raise UpdateRefusedError, naming the tensor, unless `values`, flat, can be added to others.

    They cannot if they hold NaN or infinity, or are too large; `current` are those of the global model.
    """
    size = magnitude(values)
    if not math.isfinite(size):
        raise UpdateRefusedError(f"{error_prefix}: tensor '{name}' holds NaN or infinity")
    if size > LARGEST_VALUE and is_too_large(values, current):
        raise TooLargeError(
            f"{error_prefix}: tensor '{name}' holds {np.abs(values).max():g}, more than {LARGEST_VALUE:g}: with it the "
            "next global model might not be finite"
        )


def check_layout(update: Header, expected: Header, error_prefix: str) -> None:
    """Raise UpdateRefusedError, naming the tensor, unless `update` has exactly the tensors of `expected`."""
    missing, extra = expected.entries.keys() - update.entries.keys(), update.entries.keys() - expected.entries.keys()
    if missing or extra:
        raise UpdateRefusedError(f"{error_prefix}: tensors missing {sorted(missing)[:3]}, unknown {sorted(extra)[:3]}")
    for name, entry in update.entries.items():
        wanted = expected.entries[name]
        if (entry.dtype, entry.shape) != (wanted.dtype, wanted.shape):
            raise UpdateRefusedError(f"{error_prefix}: tensor '{name}' is {entry}, not {wanted}")
