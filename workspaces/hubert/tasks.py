"""Training and validation of one round, in plain PyTorch."""

import itertools
import logging
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch.amp.grad_scaler import GradScaler

from openfl_audio.node.progress import report
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.training.private_round import not_private
from openfl_audio.training.proximal import ProximalTerm
from openfl_audio.training.schedules import linear_rate, set_rate
from workspaces.hubert.batch_size_finder import find_max_samples, usage
from workspaces.hubert.data import Batch, BatchLimits, Clips
from workspaces.hubert.loss import FrameCounts, Objective, Sums, predict
from workspaces.hubert.model import Hubert, count_frames, training_flops

logger = logging.getLogger(__name__)

MASKED_PREDICTION = Path(__file__).parent / "metrics" / "masked_prediction.py"
# What the metrics of `validate_clips` are means over: the masked frames, unless they are no means.
MEAN_OVER = {
    "loss": "frames",
    "masked_accuracy": "frames",
    "unmasked_accuracy": "frames",
    "most_frequent_accuracy": None,
    "cluster_usage": None,
    "perplexity": None,
}
VALIDATION_SAMPLES = 1_600_000  # in a batch, without gradients: 100 s
# Below the usual 65536, from which it would have to come down, step by step without a step, in every round.
FIRST_LOSS_SCALE = 2.0**10


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training in each round.

    An optimizer's step is taken over `accumulate` batches, as if they were one. `warmup` is the share of the steps of
    all rounds in which the learning rate rises. `max_samples` "auto" takes what the free memory allows; it then depends
    on the machine, and so does the result.
    """

    rounds: int
    learning_rate: float
    local_epochs: int = 1
    max_samples: int | Literal["auto"] = 1_400_000
    max_clip_samples: int = 250_000
    max_clips: int = 64
    accumulate: int = 1
    warmup: float = 0.08
    clip_grad_norm: float = 10.0
    warn_grad_norm: float = 10.0
    proximal_mu: float = 0.0
    autocast: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    feature_grad_mult: float = 0.1


@not_private("the clusters that it predicts are of codebooks, which were fitted to the clips without noise")
def train_round(
    model: Hubert,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
    objective: Objective,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`.

    Everything that is drawn (order, crops, masks, dropout) follows from torch's global generator, which an envoy seeds
    by round and client.

    Gradients of a norm above `settings.warn_grad_norm`, before they are clipped, are told in the log.

    Returns the objective's metrics over all frames of the round, each as it was before its step, and learning_rate (at
    the end), gradient_norm (the mean, before clipping), seconds, samples_per_second, flops_per_second (see
    `training_flops`), cpu_percent (of one core), and `usage` of memory.
    """
    model.to(device).train()
    model.gradient_checkpointing = settings.gradient_checkpointing
    model.feature_grad_mult = settings.feature_grad_mult
    generator = np.random.default_rng(int(torch.randint(2**62, ())))
    limits = BatchLimits(
        _max_samples(model, settings, objective, device), settings.max_clip_samples, settings.max_clips
    )
    plan = clips.train_batches(limits, settings.local_epochs, generator)
    steps = math.ceil(len(plan) / settings.accumulate)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    proximal = ProximalTerm(parameters, settings.proximal_mu)
    scaler = GradScaler(device, init_scale=FIRST_LOSS_SCALE, enabled=settings.autocast == "float16")
    sums: Sums = {}
    norms = []
    heard = 0  # clips
    began, cpu_began = time.monotonic(), time.process_time()
    batches = clips.load(plan, generator)
    for step in range(steps):
        rate = linear_rate(settings.learning_rate, settings.warmup, settings.rounds, round_number, step, steps)
        set_rate(optimizer, rate)
        optimizer.zero_grad()
        parts = [batch.to(device) for batch in itertools.islice(batches, settings.accumulate)]
        add_gradients(model, parts, objective, settings.autocast, scaler, sums)
        scaler.unscale_(optimizer)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_grad_norm))
        if norms[-1] > settings.warn_grad_norm:
            logger.warning("round %d, step %d: large gradients, of norm %.3g", round_number, step + 1, norms[-1])
        proximal.add_gradients()
        scaler.step(optimizer)
        scaler.update()
        heard += sum(len(part.lengths) for part in parts)
        report(step + 1, steps, clips=heard)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    flops = sum(training_flops(model.config, crop.num_samples) for batch in plan for crop in batch)
    samples = sum(crop.num_samples for batch in plan for crop in batch)
    finite = [norm for norm in map(float, norms) if math.isfinite(norm) or settings.autocast != "float16"]
    return {
        **objective.metrics(sums),
        "learning_rate": rate,
        # A step that overflowed in float16 was not taken.
        **({"gradient_norm": float(np.mean(finite))} if finite else {}),
        "skipped_steps": float(len(norms) - len(finite)),
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "flops_per_second": flops / seconds,
        "cpu_percent": 100 * cpu_seconds / seconds,
        **usage(device),
    }


def add_gradients(
    model: Hubert,
    batches: list[Batch],
    objective: Objective,
    autocast: str,
    scaler: GradScaler,
    sums: Sums,
) -> None:
    """Add to the gradients those of the mean loss over the frames of all `batches`, and to `sums` what they give."""
    counts = FrameCounts.of(batches)
    for batch in batches:
        with torch.autocast(batch.waveforms.device.type, getattr(torch, autocast), enabled=autocast != "float32"):
            loss, seen = objective(model, batch, counts)
        scaler.scale(loss).backward()
        add_sums(sums, seen)


def add_sums(sums: Sums, seen: Sums) -> None:
    """Add what was `seen` in a batch to `sums`, in float64."""
    for name, value in seen.items():
        sums[name] = sums[name] + value.double() if name in sums else value.double()


def validate_clips(model: Hubert, clips: Clips, device: str, max_samples: int = VALIDATION_SAMPLES) -> dict[str, float]:
    """Return the metrics of masked prediction over all clips, whole, with masks that are functions of the clips.

    They are loss (masked cross-entropy in nats, lower is better), perplexity, its exp, and the metrics of
    metrics/masked_prediction.py. Raises ValueError if there are no clips.
    """
    if not len(clips):
        raise ValueError("there are no clips to validate with")
    model.to(device).eval()
    metric = _masked_prediction()
    total, frames = 0.0, 0
    with torch.inference_mode():
        for batch in clips.validation_batches(max_samples):
            batch = batch.to(device)
            real = batch.real
            logits = model.logits(predict(model, batch)[1][real])
            targets, masked = batch.targets[real], batch.mask[real]
            total += F.cross_entropy(logits[masked], targets[masked], reduction="sum").item()
            frames += int(masked.sum())
            metric.add_batch(predictions=logits.argmax(-1).cpu(), references=targets.cpu(), masked=masked.cpu())
    scores = metric.compute(clusters=model.config.clusters)
    unmasked = MeanOver(scores["unmasked_accuracy"], int(clips.frames.sum()) - frames)
    return {"loss": total / frames, "perplexity": math.exp(total / frames), **scores, "unmasked_accuracy": unmasked}


def validate_objective(
    model: Hubert, clips: Clips, device: str, objective: Objective, max_samples: int = VALIDATION_SAMPLES
) -> dict[str, float]:
    """Return the objective's metrics over all clips, whole. Raises ValueError if there are none."""
    if not len(clips):
        raise ValueError("there are no clips to validate with")
    model.to(device).eval()
    sums: Sums = {}
    with torch.inference_mode():
        for batch in clips.validation_batches(max_samples):
            add_sums(sums, objective(model, batch.to(device), FrameCounts.of([batch]))[1])
    return objective.metrics(sums)


def _max_samples(model: Hubert, settings: TrainingSettings, objective: Objective, device: str) -> int:
    if settings.max_samples != "auto":
        return settings.max_samples
    scaler = GradScaler(device, enabled=False)

    def step(clips: int) -> None:
        batch = trial_batch(clips, settings.max_clip_samples, model.config.clusters).to(device)
        add_gradients(model, [batch], objective, settings.autocast, scaler, {})

    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        # The moments of Adam come with the first step.
        moments = 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        found = find_max_samples(step, settings.max_clip_samples, device, reserved_bytes=moments)
    model.zero_grad()
    return found


def trial_batch(clips: int, num_samples: int, clusters: int) -> Batch:
    """Return noise to try a step with: `clips` of `num_samples`, all but the first one sample shorter, half masked."""
    lengths = torch.full((clips,), num_samples)
    lengths[1:] -= 1  # padded, as most batches are
    frames = count_frames(lengths)
    mask = torch.arange(int(frames.max())) < frames.min() // 2
    targets = torch.randint(max(clusters, 1), (clips, int(frames.max())))
    return Batch(0.1 * torch.randn(clips, num_samples), lengths, frames, targets, mask.expand(clips, -1).clone())


@lru_cache
def _masked_prediction() -> evaluate.EvaluationModule:
    # In memory: loading takes a second, and files would be written at each use.
    return evaluate.load(str(MASKED_PREDICTION), keep_in_memory=True)
