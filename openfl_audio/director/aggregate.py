"""Checking updates and folding them into the next global model, from files into a file.

Slice by slice: what is in memory does not depend on the model's size, nor on the number of envoys.
"""

import os
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from openfl_audio.files import sync_folder
from openfl_audio.privacy.fixed_point import WORD, decode
from openfl_audio.privacy.masks import Mask, add_masks
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.privacy.site_level import SiteRound
from openfl_audio.privacy.update import CHANGES_NAME, NUMBERS_NAME
from openfl_audio.protocol.aggregate import check_tensor
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.low_rank import ERROR, Product, combine_adapters, find_pairs, is_given, lost_share
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.server_optimizers import ServerOptimizer
from openfl_audio.protocol.tensors import Entry, Header, TensorFile, bytes_of
from openfl_audio.protocol.values import BLOCK, LARGEST_VALUE, clipped, distance, magnitude, narrowed

# Small enough for the processor's cache, and for malloc to hand out the same memory again and again. With half of it
# threads wait for the interpreter's lock so often that a fold takes 1.6 times as long.
SLICE_ITEMS = 1 << 17
Entries = Mapping[str, Entry]
# What has been written of a model goes down to the disk while the rest is made: then little is left to wait for.
SYNC_SECONDS = 0.05
# NumPy leaves the interpreter's lock while it works; more threads than this only wait for memory.
THREADS = min(4, os.cpu_count() or 1)


def check_finite(path: Path, refused: str, header: Header | None = None, model: TensorFile | None = None) -> None:
    """Raises UpdateRefusedError, naming the tensor, if one of the file's tensors holds NaN or infinity.

    With `model`, the global model that the round began with, also if a value is too large to be added to it.
    """
    with TensorFile(path, header) as update:
        entries = {name: entry for name, entry in update.header.entries.items() if entry.is_float}
        for run in _runs(entries, [entries]):
            # "not <=" also where it is NaN.
            if any(not magnitude(update.read(run.name, *ends)) <= LARGEST_VALUE for ends in _slices(run.count)):
                for name in entries:
                    values = update.read(name)
                    check_tensor(name, values, model.read(name) if model else values, refused)


@dataclass(frozen=True)
class Run:
    """Tensors of one type that lie one behind the other in all files, and so can be folded as if they were one."""

    name: str
    entry: Entry
    count: int
    trained: bool


def _runs(entries: Entries, files: Sequence[Entries], trained: Container[str] = ()) -> list[Run]:
    """Runs of `entries`, which are in the order of their bytes; `files` have all files' entries by the same names."""
    runs: list[Run] = []
    before = ""
    for name, entry in entries.items():
        last = runs[-1] if runs else None
        if last and last.trained == (name in trained) and all(_follows(file, before, name) for file in files):
            runs[-1] = replace(last, count=last.count + entry.count)
        else:
            runs.append(Run(name, entry, entry.count, name in trained))
        before = name
    return runs


def _follows(entries: Entries, before: str, name: str) -> bool:
    if name not in entries:
        return True
    first, second = entries[before], entries[name]
    return first.dtype == second.dtype and first.start + first.n_bytes == second.start


@dataclass(frozen=True)
class Contribution:
    """One envoy's update file, the clips it trained on, and the file's header where that is known."""

    path: Path
    clips: int
    header: Header | None = None


@dataclass(frozen=True)
class SecretSum:
    """The mean of changes from masked updates.

    Attributes:
        masks: what has to be added to the sum of their words, so that no mask is left in it.
        settings: how changes became words.
        mean_share: the sum of weights over the largest one.
    """

    masks: list[Mask]
    settings: SecureAggregation
    mean_share: float

    @property
    def is_by_tensor(self) -> bool:
        """Tell whether tensors are combined one by one, as they have ranges of their own."""
        return bool(self.settings.ranges)

    def combine(self, updates: Sequence[TensorFile], name: str, first: int, current: np.ndarray) -> np.ndarray:
        """Return current + the mean change, float64, for the values of a tensor from `first` on."""
        total = _sum_of_words(updates, name, first, first + len(current), self.masks)
        return current + decode(total, self.settings.range_of(name), self.mean_share, self.settings.bits)


@dataclass(frozen=True)
class NoisySecretSum:
    """The mean of changes from masked updates with noise.

    Attributes:
        masks: what has to be added to the sum of their words, so that no mask is left in it.
        noisy: how changes became words.
    """

    masks: list[Mask]
    noisy: NoisySum
    is_by_tensor = True

    def combine(self, updates: Sequence[TensorFile], name: str, first: int, current: np.ndarray) -> np.ndarray:
        """Return current + the mean change, float64, for the values of a tensor from `first` on."""
        rows = self.noisy.rows_of(name, first, len(current))
        total = _sum_of_words(updates, CHANGES_NAME, *rows, self.masks)
        return current + self.noisy.decode(total, name, first, len(current))


def _sum_of_words(updates: Sequence[TensorFile], name: str, first: int, last: int, masks: list[Mask]) -> np.ndarray:
    """Return the sum of the words of a tensor, from place `first` up to `last`, with no mask left in it."""
    total = np.zeros(last - first, WORD)
    for update in updates:
        total += update.read(name, first, last)
    header = updates[0].header
    place = (header.entries[name].start - header.entries[NUMBERS_NAME].n_bytes) // WORD.itemsize
    add_masks(total, masks, place + first)
    return total


def aggregate_files(
    current: Path,
    contributions: Sequence[Contribution],
    aggregation: Aggregation,
    aggregations: int,
    untrained: Sequence[str],
    state: Path | None,
    target: Path,
    target_state: Path,
    metadata: dict,
    outdated: Path | None = None,
    secret: SecretSum | NoisySecretSum | None = None,
    site: SiteRound | None = None,
) -> dict[str, float]:
    """Write the model that follows from `current` and the updates to `target`; the file `outdated` is used up for it.

    Returns what a round's record says of it: nothing, or the `low_rank.ERROR` of adapters.

    The result does not depend on the order in which updates arrived, only on the order of `contributions`. Integer
    tensors (counters, such as a batch norm's number of batches) take the maximum. With a server optimizer, its moments
    go from `state` (None before the first step) to `target_state`; `aggregations` is the number of steps before. With
    `secret`, updates are masked words, whose sum it decodes; integer tensors stay as they are then. With `site`,
    updates are clipped, and noise is added to their sum. Whatever is not trained stays as it is then, and with a
    `secret` that has noise in it.
    """
    with ExitStack() as stack:
        model = stack.enter_context(TensorFile(current))
        updates = [stack.enter_context(TensorFile(each.path, each.header)) for each in contributions]
        moments = stack.enter_context(TensorFile(state)) if state else None
        weights = aggregation.weights([contribution.clips for contribution in contributions])
        folding = _Folding(model, updates, weights, aggregation, aggregations, set(untrained), moments, secret, site)
        return folding.write(target, target_state, metadata, outdated)


class _Folding:
    def __init__(
        self,
        model: TensorFile,
        updates: list[TensorFile],
        weights: list[float],
        aggregation: Aggregation,
        aggregations: int,
        untrained: set[str],
        moments: TensorFile | None,
        secret: SecretSum | NoisySecretSum | None,
        site: SiteRound | None,
    ) -> None:
        self.model, self.updates, self.weights, self.moments = model, updates, weights, moments
        self.aggregation, self.aggregations = aggregation, aggregations
        self.optimizer = aggregation.server_optimizer
        self.parameters = {n: e for n, e in model.header.entries.items() if e.is_float and n not in untrained}
        pairs = find_pairs(model.header.entries) if aggregation.product_rule else []
        self.paired = {name for pair in pairs for name in pair.names}
        self.state_header = self._lay_out_state()
        self.secret, self.site = secret, site
        self.is_private = site is not None or isinstance(secret, NoisySecretSum)
        self.site_scales = [site.scales(self._distances(update)) for update in updates] if site else []
        self.scales = [1.0] * len(updates)
        # What is masked was shortened by those who sent it.
        if aggregation.clip_norm is not None and not secret:
            self.scales = aggregation.clip_scales([self._distance(update) for update in updates])

    def write(self, target: Path, target_state: Path, metadata: dict, outdated: Path | None) -> dict[str, float]:
        with ExitStack() as stack:
            model = stack.enter_context(_Target(target, self.model.header.with_metadata(metadata), outdated))
            moments = _Target(target_state, self.state_header.with_metadata(metadata))
            state = stack.enter_context(moments) if self.optimizer else None
            pool = stack.enter_context(ThreadPoolExecutor(THREADS))
            for _ in pool.map(lambda piece: self._fold_slice(piece, model, state), self._pieces()):
                continue
            products = [self._written(product, model) for product in self._combine_adapters()]
        return {ERROR: lost_share(products)} if products else {}

    def _combine_adapters(self) -> Iterator[Product]:
        rule = self.aggregation.product_rule
        if rule is not None:
            current, readers = self._reader(self.model), [*map(self._reader, self.updates, self.scales)]
            yield from combine_adapters(rule, self.paired, current, readers, self.weights)

    def _reader(self, file: TensorFile, scale: float = 1.0) -> Callable[[str], np.ndarray]:
        def read(name: str) -> np.ndarray:
            values = file.read(name)
            if scale < 1:
                values = clipped(self.model.read(name), values, scale)
            return values.reshape(self.model.header.entries[name].shape)

        return read

    def _written(self, product: Product, model: "_Target") -> Product:
        """Write what an adapter becomes, and return it without its tensors."""
        for name in self.model.header.entries.keys() & self.paired:
            if name in product.tensors:
                model.write(name, 0, product.tensors[name].reshape(-1))
        return replace(product, tensors={})

    def _pieces(self) -> Iterator[tuple[Run, int, int]]:
        """Runs and the items of them that are folded at a time."""
        entries = {name: entry for name, entry in self.model.header.entries.items() if name not in self.paired}
        files = [entries, *(update.header.entries for update in self.updates)]
        for slot in self.optimizer.slots if self.optimizer else ():
            files.append({name: self.state_header.entries[f"{slot}.{name}"] for name in self.parameters})
        if self.aggregation.whole_tensors:
            for name, entry in entries.items():
                yield Run(name, entry, entry.count, name in self.parameters), 0, entry.count
        elif self.site or (self.secret and self.secret.is_by_tensor):
            for name, entry in entries.items():
                for first, last in _slices(entry.count):
                    yield Run(name, entry, entry.count, name in self.parameters), first, last
        else:
            for run in _runs(entries, files, self.parameters):
                for first, last in _slices(run.count):
                    yield run, first, last

    def _fold_slice(self, piece: tuple[Run, int, int], model: "_Target", state: "_Target | None") -> None:
        run, first, last = piece
        if (self.secret and not run.entry.is_float) or (self.is_private and not run.trained):
            values = self.model.read(run.name, first, last)
        elif not run.entry.is_float:
            values = np.maximum.reduce([update.read(run.name, first, last) for update in self.updates])
        else:
            current = self.model.read(run.name, first, last)
            if self.secret:
                values = self.secret.combine(self.updates, run.name, first, current)
            elif self.site:
                values = self._with_noise(self.site, run, first, last, current)
            else:
                updates = self._slices_of_updates(run, first, last, current)
                values = self.aggregation.rule.combine(updates, self.weights, current)
            if self.optimizer and state and run.trained:
                values = self._step(self.optimizer, run, first, current, values, state)
        model.write(run.name, first, values)

    def _with_noise(self, site: SiteRound, run: Run, first: int, last: int, current: np.ndarray) -> np.ndarray:
        total = np.zeros(len(current))
        for update, scales in zip(self.updates, self.site_scales, strict=True):
            site.add(total, current, update.read(run.name, first, last), scales[run.name])
        return site.finish(total, run.name, first, current)

    def _slices_of_updates(self, run: Run, first: int, last: int, current: np.ndarray) -> Iterator[np.ndarray]:
        for update, scale in zip(self.updates, self.scales, strict=True):
            values = update.read(run.name, first, last)
            if scale < 1 and run.trained:
                values = clipped(current, values, scale)
            yield values

    def _step(
        self,
        optimizer: ServerOptimizer,
        run: Run,
        first: int,
        current: np.ndarray,
        combined: np.ndarray,
        state: "_Target",
    ) -> np.ndarray:
        slots = {}
        for slot in optimizer.slots:
            if self.moments:
                slots[slot] = self.moments.read(f"{slot}.{run.name}", first, first + len(current))
            else:
                slots[slot] = np.full(len(current), optimizer.initial_value(slot), np.float32)
        values, slots = optimizer.step(current, combined, slots, self.aggregations)
        for slot, moment in slots.items():
            state.write(f"{slot}.{run.name}", first, moment)
        return values

    def _lay_out_state(self) -> Header:
        slots = self.optimizer.slots if self.optimizer else ()
        names = {f"{slot}.{name}": entry for slot in slots for name, entry in self.parameters.items()}
        return Header.lay_out({name: (np.dtype(np.float32), entry.shape) for name, entry in names.items()}, {})

    def _distance(self, update: TensorFile) -> float:
        """Euclidean norm of what the envoy changed, over all parameters."""
        return distance(pair for name in self.parameters if not is_given(name) for pair in self._pairs(update, name))

    def _distances(self, update: TensorFile) -> dict[str, float]:
        """Euclidean norms of what the envoy changed, by tensor."""
        return {name: distance(self._pairs(update, name)) for name in self.parameters if not is_given(name)}

    def _pairs(self, update: TensorFile, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ends in _slices(self.parameters[name].count, BLOCK):
            yield self.model.read(name, *ends), update.read(name, *ends)


class _Target:
    """A safetensors file whose tensors are written in any order; there, whole and on disk, when the block ends.

    Not `files.replacing`, as blocks of an outdated file are used again, and written to disk while the rest is made.
    """

    def __init__(self, path: Path, header: Header, outdated: Path | None = None) -> None:
        """`outdated` is a file that nobody needs any more: its memory and disk blocks are used again."""
        self._path, self._header = path, header
        self._partial = path.with_name(f".{path.name}.partial")
        # What has another name as well, such as the best model, must stay as it is.
        if outdated and outdated.exists() and outdated.stat().st_nlink == 1:
            outdated.rename(self._partial)

    def __enter__(self) -> "_Target":
        self._file = self._partial.open("r+b" if self._partial.exists() else "wb")
        encoded = self._header.encode()
        self._data_start = len(encoded)
        self._file.write(encoded)
        self._file.flush()
        self._file.truncate(self._data_start + self._header.data_bytes)
        self._written = threading.Event()
        self._sync_error: OSError | None = None
        self._syncing = threading.Thread(target=self._sync_along)
        self._syncing.start()
        return self

    def _sync_along(self) -> None:
        while not self._written.wait(SYNC_SECONDS):
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                # The kernel names a fault once for each open file: the last sync would not see it again.
                self._sync_error = error
                return

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._written.set()
        self._syncing.join()
        with self._file:
            os.fsync(self._file.fileno())
        if error is None:
            if self._sync_error:
                raise self._sync_error
            self._partial.rename(self._path)
            sync_folder(self._path.parent)

    def write(self, name: str, first: int, values: np.ndarray) -> None:
        """`values` are flat, and begin at item `first` of the tensor; they may reach into those behind it."""
        entry = self._header.entries[name]
        view = bytes_of(narrowed(values, entry.dtype))
        offset = self._data_start + entry.start + first * entry.dtype.itemsize
        while len(view):
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written


def _slices(count: int, items: int | None = None) -> Iterator[tuple[int, int]]:
    items = items or SLICE_ITEMS
    for first in range(0, count, items):
        yield first, min(first + items, count)
