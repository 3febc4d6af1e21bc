"""Progress inside a round: how far a task is. To report it costs microseconds, and never blocks or fails the task."""

import time
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple


class Progress(NamedTuple):
    """Progress of a task.

    Attributes:
        task: the name of the task, "" between two tasks.
        round_number: the round that it belongs to.
        began: when its first step began, in seconds of `time.monotonic`; again where steps are counted anew.
        step: how many steps are done.
        total: how many there are, None where that is not known.
        clips: how many clips, or other items, these steps took; 0 where that is not known.
        values: losses and the like, as the task has them: numbers, arrays or tensors of one value.
    """

    task: str = ""
    round_number: int = 0
    began: float = 0.0
    step: int = 0
    total: int | None = None
    clips: int = 0
    values: Mapping[str, Any] = MappingProxyType({})


class _Current:
    """The progress of this process, whose worker runs one task at a time. It is replaced whole, so it needs no lock."""

    progress = Progress()


def report(step: int, total: int | None = None, *, clips: int = 0, **values: Any) -> None:
    """Report that a task has done `step` of `total` steps on `clips` clips, with losses or scores such as `loss=loss`.

    Called in every step of a training loop. A tensor is taken as it is, and read when it is sent, once a second at
    most; whether it is sent at all the settings of the site say.
    """
    before = _Current.progress
    began = before.began if 0 < step >= before.step else time.monotonic()  # a second pass over a loader counts anew
    detached = {name: value.detach() if hasattr(value, "detach") else value for name, value in values.items()}
    _Current.progress = Progress(before.task, before.round_number, began, step, total, clips, detached)


def begin_task(task: str, round_number: int) -> None:
    """Note that a task begins, or with "" that none runs."""
    _Current.progress = Progress(task, round_number, time.monotonic())


def current() -> Progress:
    """Return how far the task of this process is."""
    return _Current.progress


def counted(loader: Any) -> Any:
    """Return `loader`, which reports a step for each batch drawn from it if it is a DataLoader of PyTorch.

    It stays the same object of a subclass of its class: nothing that a task does with it changes. Loaders of other
    kinds are returned as they are; their tasks call `report`.
    """
    from torch.utils.data import DataLoader

    if isinstance(loader, DataLoader) and not hasattr(type(loader), "counts_steps"):
        kind: Any = type(loader)
        loader.__class__ = _counting(kind)
    return loader


class CountedData:
    """The loaders of a data interface, which report the steps of a task."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def get_train_loader(self) -> Any:
        """Return the loader that a training task gets."""
        return counted(self._data.get_train_loader())

    def get_valid_loader(self) -> Any:
        """Return the loader that a validation task gets."""
        return counted(self._data.get_valid_loader())


@cache
def _counting(kind: Any) -> Any:
    def iterate(self: Any) -> Iterator[Any]:
        try:
            total = len(self)
        except TypeError:  # of a dataset that only iterates
            total = None
        step, batch_size = 0, self.batch_size or 0
        report(step, total)
        for batch in kind.__iter__(self):
            yield batch
            step += 1
            report(step, total, clips=step * batch_size)

    return type(kind.__name__, (kind,), {"__iter__": iterate, "__module__": kind.__module__, "counts_steps": True})
