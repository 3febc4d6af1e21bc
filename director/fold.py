"""Checking updates and folding them into the next global model, from files into a file.

Tensor by tensor and slice by slice: what is in memory does not depend on the model's size, nor on the number of envoys.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from director.rounds import UpdateRefusedError
from federation.aggregation import Aggregation, ServerOptimizer, clipped
from federation.tensors import Entry, Header, TensorFile, bytes_of

SLICE_ITEMS = 1 << 18
# NumPy leaves the interpreter's lock while it works; more threads than this only wait for memory.
THREADS = min(4, os.cpu_count() or 1)


def check_layout(update: Header, expected: Header, refused: str) -> None:
    """Raises UpdateRefusedError, naming the tensor, unless `update` has exactly the tensors of `expected`."""
    missing, extra = expected.entries.keys() - update.entries.keys(), update.entries.keys() - expected.entries.keys()
    if missing or extra:
        raise UpdateRefusedError(f"{refused}: tensors missing {sorted(missing)[:3]}, unknown {sorted(extra)[:3]}")
    for name, entry in update.entries.items():
        wanted = expected.entries[name]
        if (entry.dtype, entry.shape) != (wanted.dtype, wanted.shape):
            raise UpdateRefusedError(f"{refused}: tensor '{name}' is {entry}, not {wanted}")


def check_finite(path: Path, refused: str) -> None:
    """Raises UpdateRefusedError, naming the tensor, if one of the file's tensors holds NaN or infinity."""
    with TensorFile(path) as update:
        for name, entry in update.header.entries.items():
            if entry.is_float and not all(_is_finite(update.read(name, *ends)) for ends in _slices(entry)):
                raise UpdateRefusedError(f"{refused}: tensor '{name}' holds NaN or infinity")


def _is_finite(values: np.ndarray) -> bool:
    # The squares' sum is finite only if all values are, and takes one pass. It may also overflow: then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float32) if values.dtype == np.float16 else values
        return bool(np.isfinite(np.dot(wide, wide))) or bool(np.isfinite(values).all())


@dataclass(frozen=True)
class Contribution:
    """One envoy's update file and the clips it trained on."""

    path: Path
    clips: int


def fold(
    current: Path,
    contributions: Sequence[Contribution],
    aggregation: Aggregation,
    aggregations: int,
    untrained: Sequence[str],
    state: Path | None,
    target: Path,
    target_state: Path,
    metadata: dict,
) -> None:
    """Write the model that follows from `current` and the updates to `target`.

    The result does not depend on the order in which updates arrived, only on the order of `contributions`. Integer
    tensors (counters, such as a batch norm's number of batches) take the maximum. With a server optimizer, its moments
    go from `state` (None before the first step) to `target_state`; `aggregations` is the number of steps before.
    """
    with ExitStack() as stack:
        model = stack.enter_context(TensorFile(current))
        updates = [stack.enter_context(TensorFile(contribution.path)) for contribution in contributions]
        moments = stack.enter_context(TensorFile(state)) if state else None
        clips = [contribution.clips for contribution in contributions]
        folding = _Folding(model, updates, clips, aggregation, aggregations, set(untrained), moments)
        folding.write(target, target_state, metadata)


class _Folding:
    def __init__(
        self,
        model: TensorFile,
        updates: list[TensorFile],
        clips: list[int],
        aggregation: Aggregation,
        aggregations: int,
        untrained: set[str],
        moments: TensorFile | None,
    ) -> None:
        self.model, self.updates, self.clips, self.moments = model, updates, clips, moments
        self.aggregation, self.aggregations = aggregation, aggregations
        self.optimizer = aggregation.server_optimizer
        self.parameters = {n: e for n, e in model.header.entries.items() if e.is_float and n not in untrained}
        self.scales = [1.0] * len(updates)
        if aggregation.clip_norm is not None:
            self.scales = aggregation.clip_scales([self._distance(update) for update in updates])

    def write(self, target: Path, target_state: Path, metadata: dict) -> None:
        with ExitStack() as stack:
            model = stack.enter_context(_Target(target, self.model.header.with_metadata(metadata)))
            state = None
            if self.optimizer:
                state = stack.enter_context(_Target(target_state, self._state_header(self.optimizer)))
            pool = stack.enter_context(ThreadPoolExecutor(THREADS))
            names = self.model.header.entries
            for _ in pool.map(lambda name: self._fold_tensor(name, model, state), names):
                continue

    def _fold_tensor(self, name: str, model: "_Target", state: "_Target | None") -> None:
        entry = self.model.header.entries[name]
        for first, last in _slices(entry, whole=self.aggregation.rule.whole_tensors):
            current = self.model.read(name, first, last)
            if not entry.is_float:
                values = np.maximum.reduce([update.read(name, first, last) for update in self.updates])
            else:
                values = self.aggregation.rule.combine(self._slices_of_updates(name, first, last, current), self.clips)
                if self.optimizer and state and name in self.parameters:
                    values = self._step(self.optimizer, name, first, current, values, state)
            model.write(name, first, values)

    def _slices_of_updates(self, name: str, first: int, last: int, current: np.ndarray) -> Iterator[np.ndarray]:
        for update, scale in zip(self.updates, self.scales, strict=True):
            values = update.read(name, first, last)
            yield clipped(current, values, scale) if scale < 1 and name in self.parameters else values

    def _step(
        self,
        optimizer: ServerOptimizer,
        name: str,
        first: int,
        current: np.ndarray,
        combined: np.ndarray,
        state: "_Target",
    ) -> np.ndarray:
        slots = {}
        for slot in optimizer.slots:
            if self.moments:
                slots[slot] = self.moments.read(f"{slot}.{name}", first, first + len(current))
            else:
                slots[slot] = np.full(len(current), optimizer.initial_value, np.float32)
        values, slots = optimizer.step(current, combined, slots, self.aggregations)
        for slot, moment in slots.items():
            state.write(f"{slot}.{name}", first, moment)
        return values

    def _state_header(self, optimizer: ServerOptimizer) -> Header:
        names = {f"{slot}.{name}": entry for slot in optimizer.slots for name, entry in self.parameters.items()}
        shapes = {name: (np.dtype(np.float32), entry.shape) for name, entry in names.items()}
        return Header.lay_out(shapes, {})

    def _distance(self, update: TensorFile) -> float:
        """Euclidean norm of what the envoy changed, over all parameters."""
        total = 0.0
        for name, entry in self.parameters.items():
            for first, last in _slices(entry):
                change = update.read(name, first, last).astype(np.float64) - self.model.read(name, first, last)
                total += float(np.dot(change, change))
        return total**0.5


class _Target:
    """A safetensors file whose tensors are written in any order; there, whole and on disk, when the block ends."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header = path, header
        self._partial = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> "_Target":
        self._file = self._partial.open("wb")
        encoded = self._header.encode()
        self._data_start = len(encoded)
        self._file.write(encoded)
        self._file.flush()
        self._file.truncate(self._data_start + self._header.data_bytes)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())
        if error is None:
            self._partial.rename(self._path)

    def write(self, name: str, first: int, values: np.ndarray) -> None:
        """`values` are flat, and begin at item `first` of the tensor."""
        entry = self._header.entries[name]
        view = bytes_of(values.astype(entry.dtype, copy=False))
        offset = self._data_start + entry.start + first * entry.dtype.itemsize
        while len(view):
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written


def _slices(entry: Entry, whole: bool = False) -> Iterator[tuple[int, int]]:
    step = max(1, entry.count) if whole else SLICE_ITEMS
    for first in range(0, entry.count, step):
        yield first, min(first + step, entry.count)
