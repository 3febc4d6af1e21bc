#!/usr/bin/env python3
"""Gain of the cache of encoder outputs: seconds of an epoch over Whisper's frozen encoder, with it and without.

    python benchmarks/encoder_cache.py                              # 30 s windows, on noise made here
    python benchmarks/encoder_cache.py --form short --clips 512     # one-second windows
    python benchmarks/encoder_cache.py --data data/speech_commands --pretrained openai/whisper-tiny --json

An epoch gets the outputs of all clips and trains the head, in batches of 8 with SGD. Without the cache it encodes every
clip, from log-mel frames that lie ready in memory: that is how Flower's example goes about it. The first epoch with the
cache decodes the audio, computes log-mel frames, encodes and writes. Later ones read; `later_epoch_split` says what
they spend on that and what on the head. `ready_again_s` is what a new process, or the same data made anew, takes before
its first epoch: decoding the audio, hashing it and looking it up. The encoder has whisper-tiny's sizes and random
weights, unless --pretrained names others. The cache is a temporary folder.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save
from shard_descriptors.superb import SuperbShardDescriptor
from shard_descriptors.superb.layout import LABELS
from workspaces.keyword_spotting.data import EncoderClips, open_output_store
from workspaces.keyword_spotting.model import EncoderModel
from workspaces.keyword_spotting.tasks import TrainingSettings, train_round
from workspaces.keyword_spotting.whisper import FORMS, WhisperForKeywords, create_whisper


class Noise:
    """A shard of noise, one second a clip."""

    def __init__(self, num_clips: int) -> None:
        self.labels = np.arange(num_clips) % len(LABELS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        waveform = np.random.default_rng(index).normal(scale=0.1, size=16_000)
        return waveform.astype(np.float32), int(self.labels[index])

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is drawn anew."""


class Recordings(Noise):
    """Training clips of a Speech Commands folder, spread over all of it."""

    def __init__(self, folder: str, num_clips: int) -> None:
        self.dataset = SuperbShardDescriptor(folder).get_dataset("train")
        self.items = np.linspace(0, len(self.dataset) - 1, min(num_clips, len(self.dataset))).astype(int)
        self.labels = self.dataset.labels[self.items]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.dataset[int(self.items[index])]

    def set_epoch(self, epoch: int) -> None:
        """Pass the number of the epoch on to the recordings."""
        self.dataset.set_epoch(epoch)


class TimedClips(EncoderClips):
    """Adds up the seconds that its batches take."""

    batch_s = 0.0

    def batch(self, items: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch, whose seconds are added to `batch_s`."""
        start = time.perf_counter()
        batch = super().batch(items)
        self.batch_s += time.perf_counter() - start
        return batch


class EncodedEachTime(EncoderClips):
    """Log-mel frames in memory, and an encoder that runs for every batch."""

    def __init__(self, shard: Noise, model: WhisperForKeywords, device: str) -> None:
        super().__init__(shard)
        self._model, self._device = model, device
        self.features = torch.cat([self._make_inputs(np.array([item])) for item in range(len(self))])

    def prepare(self, model: EncoderModel, device: str) -> None:
        """Nothing more."""

    def batch(self, items: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoder's outputs for a batch, computed anew, and the labels."""
        features = self.features[items].to(self._device)
        with torch.no_grad():
            return self._model.encode(features), torch.from_numpy(self.labels[items]).to(self._device)


def benchmark(model: WhisperForKeywords, shard: Noise, epochs: int, device: str) -> dict:
    """Run an epoch without the cache and `1 + epochs` with it, and return what is reported."""
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.001)
    settings = TrainingSettings(rounds=epochs)

    def epoch(clips: EncoderClips, number: int) -> float:
        return seconds(lambda: train_round(model, clips, optimizer, device, number, settings))

    torch.nn.Module.to(model, device)
    encoding_s = epoch(EncodedEachTime(shard, model, device), 0)

    clips = TimedClips(shard)
    first_s = epoch(clips, 0)
    clips.batch_s = 0.0
    later_s = [epoch(clips, number) for number in range(1, epochs + 1)]
    reading_s = clips.batch_s / epochs
    again_s = seconds(lambda: EncoderClips(shard).prepare(model, device))

    store = open_output_store(model)
    bytes_on_disk = sum(path.stat().st_size for path in store.folder.iterdir())
    return {
        "form": model.form,
        "clips": len(clips),
        "device": device,
        "threads": torch.get_num_threads(),
        "encoder_parameters": sum(parameter.numel() for parameter in model.encoder.parameters()),
        "bytes_per_clip": round(bytes_on_disk / len(store)),
        "epoch_without_cache_s": round(encoding_s, 3),
        "first_epoch_s": round(first_s, 3),
        "later_epoch_s": {"median": round(statistics.median(later_s), 3), "max": round(max(later_s), 3)},
        "later_epoch_split": {
            "read_s": round(reading_s, 3), "head_s": round(statistics.mean(later_s) - reading_s, 3),
        },
        "ready_again_s": round(again_s, 3),
        "times_faster": round(encoding_s / statistics.median(later_s), 1),
    }  # fmt: skip


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes, with what it left to a GPU."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(report: dict) -> str:
    """Return `report` as lines of a name and a value."""
    return "\n".join(
        f"{name:24}{json.dumps(value) if isinstance(value, dict) else value}" for name, value in report.items()
    )


def create_model(pretrained: str | None, form: str) -> WhisperForKeywords:
    """Return a keyword spotter on the encoder `pretrained`, or on one of whisper-tiny's sizes with random weights."""
    config = None if pretrained else "whisper_tiny.json"
    return create_whisper(pretrained, config=config, labels=LABELS, form=form)


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, default="exact")
    parser.add_argument("--clips", type=int, default=64, help="by default 64; at least one batch of 8")
    parser.add_argument("--epochs", type=int, default=5, help="later epochs, by default 5")
    parser.add_argument("--data", metavar="DIR", help="a Speech Commands folder; by default noise is made here")
    parser.add_argument("--pretrained", help="a Whisper model, as a hub name or a folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Run the command: measure, and print the result."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shard = Recordings(arguments.data, arguments.clips) if arguments.data else Noise(arguments.clips)
    model = create_model(arguments.pretrained, arguments.form)
    with tempfile.TemporaryDirectory(prefix="encoder-cache-") as folder:
        os.environ["OPENFL_AUDIO_CACHE"] = folder
        report = benchmark(model, shard, arguments.epochs, arguments.device)
    save(arguments, report)
    print(json.dumps(report) if arguments.json else table(report))


if __name__ == "__main__":
    main()
