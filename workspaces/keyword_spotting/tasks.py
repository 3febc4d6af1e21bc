"""Training and validation of one round for an EncoderModel: plain loops, as a round may have hundreds of small clients.

The Trainer of Transformers takes a tenth of a second to set up, which is longer than the training of such a client.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import WeightedRandomSampler

from openfl_audio.node.progress import report
from openfl_audio.training.private_round import is_private, steps_of_round, train_privately, trains_privately
from openfl_audio.training.schedules import linear_schedule
from workspaces.keyword_spotting.data import EncoderClips
from workspaces.keyword_spotting.model import EncoderModel

ACCURACY = Path(__file__).parent / "metrics" / "accuracy.py"
# On an accelerator. More take more memory: gradients of each clip are kept.
PRIVATE_CLIPS_PER_PASS = 64


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training; by default those of Flower's example, whose learning rate is constant."""

    rounds: int
    local_epochs: int = 1
    batch_size: int = 8
    warmup: float = 0.05  # share of all steps
    seed: int = 0
    constant_rate: bool = True  # otherwise `linear_schedule`
    label_smoothing: float = 0.0  # 0.1, say, when the whole model is trained on few clips


@trains_privately
def train_round(
    model: EncoderModel,
    clips: EncoderClips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`, with cross-entropy.

    An epoch draws as many clips as the shard has, every label as often as any other, and leaves out a last batch that
    is not full; a shard below one batch is one smaller batch. What is drawn, dropout included, is a function of
    (settings.seed, round_number). A model that is trained whole hears each clip changed a little (`EncoderModel.vary`).

    Returns the mean loss (nats) and accuracy over the clips drawn, each as it was before its step.

    A private round draws each clip of the shard alike, takes it as it is, and returns nothing.
    Raises ValueError if the shard has no clips.
    """
    if not clips.num_clips:
        raise ValueError("there are no clips to train with")
    clips.prepare(model, device)
    seed = _seed(settings, round_number)
    generator = torch.Generator().manual_seed(seed)
    steps = steps_of_round(settings.local_epochs * (clips.num_clips // min(settings.batch_size, clips.num_clips)))
    rate = None
    if not settings.constant_rate:
        rate = linear_schedule(optimizer, settings.warmup, settings.rounds, round_number, steps)
    sums = torch.zeros(2, device=device)  # of the batches' losses and accuracies
    model.train()
    with _seeded(seed, device):
        if is_private():
            return _train_privately(model, clips, optimizer, rate, settings.label_smoothing)
        for step, items in enumerate(draw_batches(clips.labels, clips.num_clips, settings, generator), 1):
            inputs, labels = clips.batch(items)
            logits = model.head(inputs) if model.frozen else model(model.vary(inputs, generator))
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rate is not None:
                rate.step()
            sums += torch.stack([loss.detach(), (logits.argmax(-1) == labels).float().mean()])
            report(step, steps, clips=step * len(items), loss=loss)
    loss_mean, accuracy = (sums / steps).tolist()
    return {"loss": loss_mean, "accuracy": accuracy}


def _train_privately(
    model: EncoderModel,
    clips: EncoderClips,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler | None,
    label_smoothing: float,
) -> dict[str, float]:
    """Train on each clip once, however rare its label is: repetitions would be units that share a recording."""
    first, trained = clips.first_items(), model.head if model.frozen else model

    def losses(chosen: Sequence[int]) -> torch.Tensor:
        inputs, labels = clips.batch(first[chosen])
        return F.cross_entropy(trained(inputs), labels, label_smoothing=label_smoothing, reduction="none")

    after_step = rate.step if rate is not None else lambda: None
    return train_privately(trained, optimizer, clips.speakers, losses, PRIVATE_CLIPS_PER_PASS, after_step=after_step)


def draw_batches(
    labels: np.ndarray, num_clips: int, settings: TrainingSettings, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """Yield items (batch_size,), drawn from `labels` (items,) so that every label is as likely as any other.

    An epoch has as many full batches as `num_clips` make, or one of them all where they are too few for one.
    """
    weights = 1.0 / np.bincount(labels)[labels]
    batch_size = min(settings.batch_size, num_clips)
    draws = num_clips // batch_size * batch_size
    sampler = WeightedRandomSampler(weights.tolist(), draws, generator=generator)
    for _ in range(settings.local_epochs):
        yield from np.array(list(sampler)).reshape(-1, batch_size)


def validate_clips(model: EncoderModel, clips: EncoderClips, device: str, batch_size: int = 64) -> dict[str, float]:
    """Return cross-entropy (nats, lower is better) and accuracy (higher is better) over all clips.

    Raises ValueError if there are none.
    """
    if not len(clips):
        raise ValueError("there are no clips to validate with")
    clips.prepare(model, device)
    model.eval()
    classify = model.head if model.frozen else model
    logits = []
    with torch.inference_mode():
        for start in range(0, len(clips), batch_size):
            inputs, _ = clips.batch(np.arange(start, min(start + batch_size, len(clips))))
            logits.append(classify(inputs).cpu())
    outputs, labels = torch.cat(logits), torch.from_numpy(clips.labels)
    accuracy = _accuracy().compute(predictions=outputs.argmax(-1), references=labels)
    return {"loss": F.cross_entropy(outputs, labels).item(), **accuracy}


@lru_cache
def _accuracy() -> evaluate.EvaluationModule:
    # In memory: loading takes a second, and files would be written at each use.
    return evaluate.load(str(ACCURACY), keep_in_memory=True)


def _seed(settings: TrainingSettings, round_number: int) -> int:
    return int(np.random.SeedSequence((settings.seed, round_number)).generate_state(1)[0])


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and leave them as they were."""
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        yield
