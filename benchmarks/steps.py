"""Seconds and memory of a step, and measurements in processes of their own, as a peak of memory never goes down."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

from workspaces.hubert.batch_size_finder import peak_bytes, used_bytes

Value = TypeVar("Value")


class Steps(NamedTuple):
    """The seconds of each step that counts, and the most memory, in bytes, in all and beyond that before the first."""

    seconds: list[float]
    peak_bytes: int
    step_bytes: int


def measure_steps(step: Callable[[], None], repeats: int) -> Steps:
    """Take a step that does not count, and `repeats` that do, on the CPU."""
    before, seconds, peaks = used_bytes("cpu"), [], []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        peaks.append(peak_bytes(step, "cpu"))
        seconds.append(time.perf_counter() - began)
    return Steps(seconds[1:], max(peaks), max(peaks) - before)


def in_new_process(function: Callable[..., Value], *arguments: object) -> Value:
    """Return what a function returns in a process of its own, which imports it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
