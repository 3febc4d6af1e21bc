"""FSD50K's published folders -> a store of mel frames (`mel_store.py`), resumable, with a report of what it met.

The front end is that of the dataset paper (arXiv 2010.00475) in the numbers of Green & Plumbley's code: 22.05 kHz, Hann
windows of 660 samples every 220, centred with reflected ends, so that one second has 101 frames; power; 96 mel bands
from 0 Hz to 11,025 Hz on HTK's scale, as triangles of height one.
"""

import fcntl
import json
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    track,
)

from shard_descriptors.common.audio import decode, has_large_kernel, resample
from shard_descriptors.common.errors import AudioError, CorpusError
from shard_descriptors.common.files import write_json
from shard_descriptors.common.preparing import progress_bar
from shard_descriptors.fsd50k.layout import Clip, Layout
from shard_descriptors.fsd50k.store import (
    DESCRIPTION,
    FRAME_BYTES,
    FRAMES,
    HOP_LENGTH,
    LOG_FLOOR,
    N_FFT,
    N_MELS,
    POWER_SCALE,
    SAMPLE_RATE,
    TABLE,
    VERSION,
    StoredClip,
    count_stored,
    describe_settings,
    read_table,
)

REPORT = "report.json"
CLIPS_PER_TASK = 16  # some 2 MB of frames: a worker's answer, and what a stopped run does again

MEL_GROUPS = 6  # the fastest of 1 to 8

Result = tuple[StoredClip, bytes]


class MelTransform:
    """Waveforms to what a store holds; filters are computed once. torch is imported here."""

    def __init__(self, features: str) -> None:
        import torch
        from torchaudio.functional import melscale_fbanks

        self._features = features
        self._window = torch.hann_window(N_FFT)
        self._halve = HalfRate()
        filters = melscale_fbanks(N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE)  # [bins, mels]
        # All but 2 % of it is zero, and a group of neighbouring bands needs a few neighbouring bins.
        self._groups = []
        for bands in np.array_split(np.arange(N_MELS), MEL_GROUPS):
            bins = filters[:, bands].sum(dim=1).nonzero()[:, 0]
            used = slice(int(bins[0]), int(bins[-1]) + 1)
            self._groups.append((slice(bands[0], bands[-1] + 1), used, filters[used, bands].contiguous()))

    def __call__(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Return mel frames of a mono waveform at any rate, as the float16 numbers of a store.

        Returns:
            float16, shape (frames, 96); frames = 1 + samples at 22.05 kHz // 220.

        Raises:
            AudioError: too short to be reflected at its ends, or too loud for float16.
        """
        power = self.mel_power(waveform, sample_rate)
        if self._features == "log_mel":
            return power.clamp_(min=LOG_FLOOR).log_().half().numpy()
        frames = power.mul_(POWER_SCALE).half().numpy()
        if not np.isfinite(frames).all():
            raise AudioError(f"has a mel power of {power.max() / POWER_SCALE:.3g}, more than a store can hold")
        return frames

    def mel_power(self, waveform: np.ndarray, sample_rate: int) -> Any:
        """Return mel power, before the logarithm and the rounding: a float32 tensor, shape (frames, 96)."""
        import torch

        samples = self._to_store_rate(waveform, sample_rate)
        if len(samples) <= N_FFT // 2:
            raise AudioError(f"has {len(samples)} samples at {SAMPLE_RATE} Hz, and a frame needs {N_FFT // 2 + 1}")
        spectrum = torch.stft(samples, N_FFT, HOP_LENGTH, window=self._window, return_complex=True)
        bins = spectrum.T.numpy()  # [frames, bins]
        # The magnitude, squared, would take a root of everything first.
        power = torch.from_numpy(np.square(bins.real) + np.square(bins.imag))
        mel_power = torch.empty(len(power), N_MELS)
        for bands, used, filters in self._groups:
            torch.mm(power[:, used], filters, out=mel_power[:, bands])
        return mel_power

    def _to_store_rate(self, waveform: np.ndarray, sample_rate: int) -> Any:
        import torch

        if sample_rate == 2 * SAMPLE_RATE:
            return self._halve(waveform)
        if sample_rate == SAMPLE_RATE or has_large_kernel(sample_rate, SAMPLE_RATE):
            return torch.from_numpy(resample(waveform, sample_rate, SAMPLE_RATE))
        return _resampler(sample_rate)(torch.from_numpy(waveform))


class HalfRate:
    """torchaudio's resampling from 44.1 to 22.05 kHz, in a third of the time: as matrix products.

    16 outputs come from the 32 inputs at their place and the 16 before and after them; its filter reaches no further.
    The weights are what torchaudio makes of impulses at these 64 places.
    """

    def __init__(self) -> None:
        import torch

        impulses = torch.eye(96)
        weights = _resampler(2 * SAMPLE_RATE)(impulses)[16:80, 16:32]  # [inputs, outputs]
        self._first, self._second = weights[:32].contiguous(), weights[32:].contiguous()

    def __call__(self, waveform: np.ndarray) -> Any:
        """Return a float32 tensor with half of the samples, rounded up, of float32 (samples,)."""
        import torch

        blocks = -(-len(waveform) // 32)
        padded = np.zeros((blocks + 1, 32), dtype=np.float32)
        padded.reshape(-1)[16 : 16 + len(waveform)] = waveform
        rows = torch.from_numpy(padded)
        halved = torch.addmm(rows[:-1] @ self._first, rows[1:], self._second)  # [blocks, 16]
        return halved.view(-1)[: -(-len(waveform) // 2)]


@lru_cache(maxsize=16)
def _resampler(sample_rate: int) -> Any:
    from torchaudio.transforms import Resample

    return Resample(sample_rate, SAMPLE_RATE)


def prepare_store(layout: Layout, out: Path, features: str = "log_mel", workers: int = 1) -> bool:
    """Write the store of a corpus, or go on with it where an earlier run was stopped.

    The main process alone writes, in the order of the corpus's tables: frames first, and when they are on the disk the
    lines of the table that tell of them. So the store does not depend on the number of workers, and whatever is
    behind the last complete line is written again.

    Returns:
        False if the store was complete already; nothing was done then.

    Raises:
        CorpusError: `out` is something else, was made with other settings or from other tables, or is being written.
    """
    description = {
        "version": VERSION,
        "complete": False,
        "settings": describe_settings(features),
        "sources": layout.digests,
        "classes": list(layout.classes),
    }
    if _is_complete(out, description):
        return False
    out.mkdir(parents=True, exist_ok=True)
    if not (out / DESCRIPTION).exists():
        write_json(out / DESCRIPTION, description)
    _write_clips(layout, out, features, workers)
    write_json(out / REPORT, report(read_table(out / TABLE)))
    write_json(out / DESCRIPTION, {**description, "complete": True})
    return True


def report(rows: Sequence[StoredClip]) -> dict[str, Any]:
    """Return what the corpus holds, and by name what is not as published: 44.1 kHz, mono, 0.3 to 30 s."""
    usable = [row for row in rows if row.num_frames]
    return {
        "clips": len(usable),
        "audio_hours": round(sum(row.duration_s for row in usable) / 3600, 3),
        "uploaders": len({row.uploader for row in usable}),
        "frames_bytes": sum(row.num_frames for row in usable) * FRAME_BYTES,
        "repeated_to_a_second": sum(row.duration_s < 1 for row in usable),
        "shortest_s": min((row.duration_s for row in usable), default=None),
        "longest_s": max((row.duration_s for row in usable), default=None),
        "left_out": {row.name: row.problem for row in rows if not row.num_frames},
        "averaged_to_mono": {row.name: row.channels for row in usable if row.channels > 1},
        "other_sample_rate": {row.name: row.sample_rate for row in usable if row.sample_rate != 44_100},
    }


def check_store(layout: Layout, out: Path, features: str = "log_mel") -> list[str]:
    """Return what is wrong with a store, a sentence a fault; none if it is what preparing again would give.

    All frames are read and compared with their checksums. A clip whose file has another size or time than it had is
    computed again and compared.
    """
    if not (out / DESCRIPTION).is_file():
        return [f"{out} is no store of mel frames"]
    description = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
    faults = [] if description["complete"] else ["is not finished: prepare it again, and it resumes"]
    if description["settings"] != describe_settings(features):
        faults.append(f"was made with {description['settings']}, not {describe_settings(features)}")
    faults += [f"{name} was changed" for name, sha in layout.digests.items() if description["sources"][name] != sha]
    if faults:
        return faults
    rows = read_table(out / TABLE)
    size_bytes = (out / FRAMES).stat().st_size
    if size_bytes != _end_of(rows):
        return [f"{FRAMES} has {size_bytes:,} bytes, and {TABLE} tells of {_end_of(rows):,}"]
    transform = MelTransform(features)
    with (out / FRAMES).open("rb") as frames:
        for row in track(rows, f"Checking {out.name}", console=Console(stderr=True)):
            if fault := _find_fault(layout.root, row, frames.read(row.num_frames * FRAME_BYTES), transform):
                faults.append(f"{row.name}: {fault}")
    return faults


def _find_fault(root: Path, row: StoredClip, stored: bytes, transform: MelTransform) -> str | None:
    if row.checksum != zlib.crc32(stored):
        return "its frames are damaged"
    if _stamp(root / row.file) == (row.size_bytes, row.modified_ns):
        return None
    clip = Clip(row.name, row.file, row.split, row.labels, row.uploader)
    now, frames = extract(root, clip, transform)
    if now.problem != row.problem:
        return f"now {now.problem or 'can be read'}; when the store was made: {row.problem or 'can be read'}"
    # Another machine's sums may differ by the last bit.
    before, after = (np.frombuffer(data, np.float16).astype(np.float32) for data in (stored, frames))
    if before.shape != after.shape or not np.allclose(after, before, rtol=2**-9, atol=2**-9):
        return "its recording was changed"
    return None


def extract(root: Path, clip: Clip, transform: MelTransform) -> Result:
    """Return a clip's line of the table and its frames; a file that cannot be used has no frames, but the reason."""
    path = root / clip.file
    size_bytes, modified_ns = _stamp(path)
    found: dict[str, Any] = {"size_bytes": size_bytes, "modified_ns": modified_ns}
    frames = np.empty((0, N_MELS), np.float16)
    if not path.exists():
        found["problem"] = "is missing"
    else:
        try:
            waveform, sample_rate, channels = decode(path)
            duration_s = round(len(waveform) / sample_rate, 4)
            found |= {"duration_s": duration_s, "sample_rate": sample_rate, "channels": channels}
            frames = transform(waveform, sample_rate)
        except AudioError as error:
            found["problem"] = str(error).removeprefix(f"{path}: ")
    data = frames[: count_stored(len(frames))].tobytes()
    row = StoredClip(*clip, num_frames=len(data) // FRAME_BYTES, checksum=zlib.crc32(data), **found)
    return row, data


def _is_complete(out: Path, description: dict[str, Any]) -> bool:
    """Tell whether there is nothing to do. Raises CorpusError if `out` is anything but this store."""
    if not (out / DESCRIPTION).is_file():
        if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= {f".{DESCRIPTION}.partial"}):
            raise CorpusError(f"out: {out} exists and is no store of mel frames; choose another folder")
        return False
    found = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
    differs = [key for key in description if key != "complete" and found.get(key) != description[key]]
    if differs:
        raise CorpusError(
            f"out: {out} is a store with other {' and '.join(differs)}; remove it, or choose another folder"
        )
    return bool(found["complete"])


def _write_clips(layout: Layout, out: Path, features: str, workers: int) -> None:
    with (out / FRAMES).open("ab") as frames, (out / TABLE).open("ab") as table:
        try:
            fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CorpusError(f"out: {out} is being written by another process") from error
        done = read_table(out / TABLE)
        while _end_of(done) > os.fstat(frames.fileno()).st_size:  # a disk that lost what it had confirmed
            done.pop()
        frames.truncate(_end_of(done))
        table.truncate(sum(map(len, map(_line, done))))
        todo = layout.clips[len(done) :]
        with progress_bar() as progress:
            bar = progress.add_task(f"Preparing {out.name}", total=len(layout.clips), completed=len(done))
            for results in _extract_all(layout.root, todo, features, workers):
                frames.writelines(data for _, data in results)
                frames.flush()
                os.fsync(frames.fileno())  # before the table tells of them
                table.writelines(_line(row) for row, _ in results)
                table.flush()
                progress.advance(bar, len(results))
        os.fsync(table.fileno())


def _line(row: StoredClip) -> bytes:
    return json.dumps(row._asdict(), ensure_ascii=False).encode() + b"\n"


def _end_of(rows: Sequence[StoredClip]) -> int:
    return sum(row.num_frames for row in rows) * FRAME_BYTES


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a file; zeros where there is none."""
    if not path.exists():
        return 0, 0
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _extract_all(root: Path, clips: Sequence[Clip], features: str, workers: int) -> Iterator[list[Result]]:
    """Yield results in the order of the clips, a few tasks at a time: gigabytes of them would wait in memory."""
    iterator = iter(clips)
    tasks = iter(lambda: list(islice(iterator, CLIPS_PER_TASK)), [])
    if workers == 1:
        with _one_thread():
            transform = MelTransform(features)
            for task in tasks:
                yield [extract(root, clip, transform) for clip in task]
        return
    # Spawned: a fork of a process that has used torch may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (features,))
    waiting: deque[Future[list[Result]]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_extract_in_worker, root, task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch with one thread, as in a worker: threads split its sums up, and every run should give the same bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_transform: MelTransform  # of a worker process


def _begin_worker(features: str) -> None:
    import torch

    global _transform
    torch.set_num_threads(1)  # each worker has a core
    _transform = MelTransform(features)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the main process: one that was killed tells its workers nothing, and they would wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _extract_in_worker(root: Path, clips: Sequence[Clip]) -> list[Result]:
    return [extract(root, clip, _transform) for clip in clips]
