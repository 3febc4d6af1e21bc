#!/usr/bin/env python3
"""Needs of a training step of HuBERT base, with and without gradient checkpointing, and savings of a student.

    OMP_NUM_THREADS=2 python benchmarks/hubert.py --save hubert

A step is that of `workspaces/hubert/tasks.py`: forward with masks, loss, backward and AdamW, in float32, on one batch
of noise of `--seconds`. Each of the two measurements has a process of its own; `seconds` is the median of `--repeats`
after one that does not count, `peak_bytes` the most memory that the process had at any time, and `step_bytes` what of
it was more than before the first step. Students are compared with the teacher by what is exported of them, and by the
time that it takes to hear a clip of `--seconds`.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

import torch
from torch.amp.grad_scaler import GradScaler

from benchmarks.arguments import add_save, save
from benchmarks.steps import in_new_process, measure_steps
from workspaces.hubert.loss import MaskedPrediction
from workspaces.hubert.model import SAMPLE_RATE, create_hubert
from workspaces.hubert.tasks import add_gradients, trial_batch
from workspaces.hubert_distillation.model import CONFIGS, compare_size_and_speed

CLUSTERS = 504
BASE = "hubert_base.json"
STUDENTS = ("student_384x6.json", "student_256x4.json")


def measure(clips: int, seconds: float, repeats: int, checkpointing: bool) -> dict[str, float]:
    """In this process, which should be a new one."""
    model = create_hubert(BASE, CLUSTERS).train()
    model.gradient_checkpointing = checkpointing
    model.feature_grad_mult = 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    batch = trial_batch(clips, round(seconds * SAMPLE_RATE), CLUSTERS)

    def step() -> None:
        optimizer.zero_grad()
        add_gradients(model, [batch], MaskedPrediction(), "float32", GradScaler("cpu", enabled=False), {})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    steps = measure_steps(step, repeats)
    return {
        "seconds": statistics.median(steps.seconds),
        "peak_bytes": steps.peak_bytes,
        "step_bytes": steps.step_bytes,
        "seconds_of_audio": clips * seconds,
    }


def compare_students(seconds: float) -> dict[str, dict[str, float]]:
    """Return size and speed of each student beside HuBERT base, on clips of `seconds`."""
    teacher = create_hubert(BASE, CLUSTERS)
    return {
        name.removesuffix(".json"): compare_size_and_speed(
            create_hubert(CONFIGS / name, CLUSTERS), teacher, "cpu", seconds
        )
        for name in STUDENTS
    }


def main() -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2, help="in a batch (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="steps that count (%(default)s)")
    add_save(parser)
    options = parser.parse_args()
    step: dict[str, Any] = {}
    for name, checkpointing in (("plain", False), ("checkpointing", True)):
        step[name] = in_new_process(measure, options.clips, options.seconds, options.repeats, checkpointing)
        print(name, json.dumps(step[name]), flush=True)
    step["times_slower"] = step["checkpointing"]["seconds"] / step["plain"]["seconds"]
    step["memory_share"] = step["checkpointing"]["step_bytes"] / step["plain"]["step_bytes"]
    students = compare_students(options.seconds)
    print(json.dumps(students, indent=2))
    save(options, {"step": step, "students": students, "threads": torch.get_num_threads()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
