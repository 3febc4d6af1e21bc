#!/usr/bin/env python3
"""Time of an epoch on a node of little memory and one core: Whisper-tiny with a head, on one client's clips.

    systemd-run --scope -p MemoryMax=4G taskset -c 0 python benchmarks/small_node.py --data data/speech_commands

The limits are those of a Raspberry Pi with 4 GB; the core is that of the machine it runs on, which a Pi's is slower
than. Weights are random, which takes as long as trained ones. The first epoch encodes every clip and keeps what the
frozen encoder makes of it on the disk; later ones read that. An empty folder in OPENFL_AUDIO_CACHE makes an epoch the
first one.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save
from openfl_audio.config import load_settings
from openfl_audio.experiments.modes import choose_clients
from openfl_audio.experiments.workloads import find_file
from workspaces.keyword_spotting import tasks
from workspaces.keyword_spotting.data import EncoderClips
from workspaces.keyword_spotting.workload import KeywordSpotting


def measure(data: Path, form: str, clients: int, epochs: int) -> dict[str, object]:
    """Return the clips of a client, the seconds of its epochs one by one, and the peak of its memory."""
    workload = KeywordSpotting()
    changes = {"model.pretrained": None, "model.config": "whisper_tiny.json", "model.form": form, "clients": clients}
    settings = load_settings(find_file(workload, "whisper.yaml"), workload.config_class, changes)
    [each] = choose_clients(workload, settings, data, "individual", [0])
    clips = EncoderClips(each.open(each.trainers[0]).get_dataset("train"), repeat_rare=True)
    model = workload.model(settings)()
    optimizer = settings.optimizer.recipe()(each for each in model.parameters() if each.requires_grad)
    [training] = workload.tasks(settings).task_settings["train_round"].values()
    seconds = []
    for epoch in range(epochs):
        began = time.monotonic()
        tasks.train_round(model, clips, optimizer, "cpu", epoch, training)
        seconds.append(round(time.monotonic() - began, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"form": form, "clips": len(clips), "epoch_seconds": seconds, "peak_memory_mb": round(peak / 1e6)}


def main() -> None:
    """Print what was measured, as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="folder of Speech Commands")
    parser.add_argument("--form", choices=("exact", "short"), default="exact", help="30 s or one second are encoded")
    parser.add_argument("--clients", type=int, default=2, metavar="N", help="the first of so many is measured (2)")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="number of epochs (2)")
    add_save(parser)
    options = parser.parse_args()
    result = measure(options.data, options.form, options.clients, options.epochs)
    save(options, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
