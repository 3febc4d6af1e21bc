"""Memory of a training step, and how large a batch may be for it."""

import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import psutil
import torch

# Share of the free memory; the rest is for what a trial does not show, such as fragments.
USABLE_SHARE = 0.8
SECONDS_BETWEEN_SAMPLES = 0.002


def find_max_samples(step: Callable[[int], None], clip_samples: int, device: str, reserved_bytes: int = 0) -> int:
    """Return how many samples a batch may have for `step` to fit into the free memory: at least one clip.

    `step(clips)` trains on that many clips of `clip_samples`. What one and two of them take at most gives what is taken
    in any case, and for each clip. `reserved_bytes` will be taken besides.
    """
    free, before = free_bytes(device), used_bytes(device)
    step(1)  # the first takes for good what the others find
    one, two = (peak_bytes(partial(step, clips), device) - before for clips in (1, 2))
    # Memory that a process has given back may still count as its own, so that a difference can be hidden.
    per_clip = max(two - one if two > one else one, 1)
    clips = (USABLE_SHARE * free - reserved_bytes - (one - per_clip)) / per_clip
    return max(clip_samples, int(clips * clip_samples))


def peak_bytes(function: Callable[[], None], device: str) -> int:
    """Return the most memory that is in use while `function` runs, on a GPU or in this process."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    highest, done = used_bytes(device), threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(SECONDS_BETWEEN_SAMPLES):
            highest = max(highest, used_bytes(device))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return highest


def used_bytes(device: str) -> int:
    """Return the bytes in use: of this process, or on its GPU."""
    return psutil.Process().memory_info().rss if device == "cpu" else torch.cuda.memory_allocated(device)


def free_bytes(device: str) -> int:
    """Return the bytes that are free: of this machine, or on the GPU."""
    if device == "cpu":
        return psutil.virtual_memory().available
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def usage(device: str) -> dict[str, float]:
    """Return `rss_bytes` of this process and their peak so far.

    On a GPU its memory is there as well, and the percentage of time that it was busy.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    peak_bytes = float(peak if sys.platform == "darwin" else peak * 1024)
    metrics = {"rss_bytes": float(used_bytes("cpu")), "peak_rss_bytes": peak_bytes}
    if device != "cpu":
        metrics["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
        metrics |= _gpu_use(device)
    return metrics


def _gpu_use(device: str) -> dict[str, float]:
    # As nvidia-smi tells it, over the last second or less: empty where there is none.
    if shutil.which("nvidia-smi") is None:
        return {}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["nvidia-smi", f"--id={uuid}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {"gpu_use_percent": float(answer)} if answer.isdecimal() else {}
