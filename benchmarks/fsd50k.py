#!/usr/bin/env python3
"""Time and size of a preparation of FSD50K, next to the code of Green & Plumbley, on the same clips.

    python benchmarks/fsd50k.py                              # 100 clips of noise of 0.3 to 30 s, made here
    python benchmarks/fsd50k.py --data data/FSD50K --clips 200

Theirs (github.com/marc1701/fsd_fed, `segment_audio`): file by file, torchaudio's Resample and MelSpectrogram, and
`torch.save` of every patch, which is a slice and so takes the frames of its whole clip into its file. `transform` is
the same without the files. Ours is the preparation of a store, all of it. Both decode with soundfile, in one process
and one thread, clips in the page cache. Seconds are of the processor (user and system), so that a busy machine
changes them little; the passes alternate, and the fastest of each counts. Prints one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.fsd50k.layout import Clip, Layout, read_layout
from shard_descriptors.fsd50k.preparation import prepare_store
from shard_descriptors.fsd50k.store import (
    FRAMES,
    HOP_LENGTH,
    N_FFT,
    N_MELS,
    PATCH_FRAMES,
    PATCH_HOP,
    SAMPLE_RATE,
    TABLE,
)

CORPUS_CLIPS = 51_197
CORPUS_HOURS = 108.3  # both arXiv 2010.00475
CORPUS_SAMPLE_RATE = 44_100


def make_noise(root: Path, clips: int) -> Layout:
    """A layout of noise clips with lengths of 0.3 to 30 s, as many short ones as long ones on a logarithmic scale."""
    lengths_s = np.geomspace(0.3, 30, clips)
    generator = np.random.default_rng(0)
    (root / "audio").mkdir()
    for i, length_s in enumerate(lengths_s):
        noise = generator.normal(scale=0.1, size=round(length_s * CORPUS_SAMPLE_RATE))
        soundfile.write(root / f"audio/{i}.wav", noise.clip(-1, 1), CORPUS_SAMPLE_RATE)
    made = tuple(Clip(str(i), f"audio/{i}.wav", "train", (0,), "nobody") for i in range(clips))
    return Layout(root, ("Noise",), made, {})


def published_way(layout: Layout, out: Path | None) -> None:
    """Transform clip by clip, and write a file per patch if there is a folder for them."""
    transform = torch.nn.Sequential(
        torchaudio.transforms.Resample(CORPUS_SAMPLE_RATE, SAMPLE_RATE),
        torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS),
    )
    for clip in layout.clips:
        waveform, _ = soundfile.read(layout.root / clip.file, dtype="float32", always_2d=True)
        frames = transform(torch.from_numpy(waveform.T)).squeeze().T
        while len(frames) < PATCH_FRAMES:
            frames = torch.cat((frames, frames[: PATCH_FRAMES - len(frames)]))
        if out is None:
            continue
        for i in range(len(frames) // PATCH_HOP - 1):
            patch = frames[i * PATCH_HOP : i * PATCH_HOP + PATCH_FRAMES]
            if len(patch) < PATCH_FRAMES:
                patch = torch.cat((patch, patch[-1:]))
            torch.save(patch, out / f"{clip.name}.{i}.pt")


def measure(layout: Layout, repeats: int) -> dict:
    """Run each way `repeats` times, and return what is reported."""
    audio_s = sum(soundfile.info(layout.root / clip.file).duration for clip in layout.clips)
    seconds: dict[str, list[float]] = {"published": [], "published_transform": [], "ours": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="fsd50k-") as folder:
            patches, store = Path(folder, "patches"), Path(folder, "store")
            patches.mkdir()
            seconds["published"].append(cpu_seconds(lambda: published_way(layout, patches)))  # noqa: B023
            seconds["published_transform"].append(cpu_seconds(lambda: published_way(layout, None)))
            seconds["ours"].append(cpu_seconds(lambda: prepare_store(layout, store)))  # noqa: B023
            bytes_published = sum(path.stat().st_size for path in patches.iterdir())
            bytes_frames, bytes_table = (store / FRAMES).stat().st_size, (store / TABLE).stat().st_size
    best = {way: min(of_way) for way, of_way in seconds.items()}
    full = bytes_frames / audio_s * CORPUS_HOURS * 3600 + bytes_table / len(layout.clips) * CORPUS_CLIPS
    return {
        "clips": len(layout.clips),
        "audio_s": round(audio_s, 1),
        "repeats": repeats,
        "seconds_per_audio_second": {way: float(f"{of_way / audio_s:.3g}") for way, of_way in best.items()},
        "times_real_time_per_core": {way: round(audio_s / of_way) for way, of_way in best.items()},
        "ours_times_faster": {way: round(of_way / best["ours"], 2) for way, of_way in best.items() if way != "ours"},
        "bytes_per_audio_second": {
            "published": round(bytes_published / audio_s),
            "ours": round((bytes_frames + bytes_table) / audio_s),
        },
        "full_set": {"GB": round(full / 1e9, 3), "GiB": round(full / 2**30, 3), "clips": CORPUS_CLIPS},
    }


def cpu_seconds(action: Callable[[], object]) -> float:
    """Return the seconds of processor time that `action` takes in this process."""
    start = time.process_time()
    action()
    return time.process_time() - start


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an FSD50K folder; by default noise is made here")
    parser.add_argument("--clips", type=whole_number, default=100, help="at most %(default)s")
    parser.add_argument("--repeats", type=whole_number, default=3, help="the fastest counts (%(default)s)")
    add_save(parser)
    return parser.parse_args()


def main() -> int:
    """Run the command, and return its exit status."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fsd50k-noise-") as folder:
        try:
            layout = read_layout(arguments.data) if arguments.data else make_noise(Path(folder), arguments.clips)
        except CorpusError as error:
            print(error, file=sys.stderr)
            return 1
        chosen = np.unique(np.linspace(0, len(layout.clips) - 1, arguments.clips).astype(int))
        layout = replace(layout, clips=tuple(layout.clips[i] for i in chosen))
        result = measure(layout, arguments.repeats)
    save(arguments, result)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
