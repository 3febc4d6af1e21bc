"""Training and validation of one round for Whisper: plain loops, as a round may have hundreds of small clients.

The Trainer of tasks.py takes a tenth of a second to set up, which is longer than the training of such a client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import WeightedRandomSampler

from workspaces.keyword_spotting.tasks import ACCURACY, TrainingSettings, schedule
from workspaces.keyword_spotting.whisper import FRAMES_PER_S, WhisperForKeywords
from workspaces.keyword_spotting.whisper_data import WhisperClips

MAX_STRETCH = 0.2  # of the natural logarithm: by up to 22 %
MAX_SHIFT_FRAMES = 10  # of 10 ms: a tenth of a second, as in TensorFlow's recipe (Warden, arXiv 1804.03209)
MAX_LEVEL = 0.2  # in Whisper's log-mel, four of which are a power of ten: 8 dB


@dataclass(frozen=True)
class WhisperSettings(TrainingSettings):
    """How an envoy trains in each round; by default as Flower's example does, whose learning rate stays as it is."""

    batch_size: int = 8
    constant_rate: bool = True  # otherwise the schedule of tasks.py
    label_smoothing: float = 0.0  # 0.1, say, when the whole model is trained on few clips


def train_round(
    model: WhisperForKeywords,
    clips: WhisperClips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: WhisperSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`, with cross-entropy.

    An epoch draws as many clips as the shard has, every label as often as any other, and leaves out a last batch that
    is not full. What is drawn, dropout included, is a function of (settings.seed, round_number). A model that is
    trained whole hears each clip changed a little (`vary`).

    Returns the mean loss (nats) and accuracy over the clips drawn, each as it was before its step.
    Raises ValueError if the shard has less than one batch.
    """
    if clips.num_clips < settings.batch_size:
        raise ValueError(f"{clips.num_clips} clips do not fill a batch of {settings.batch_size}")
    clips.prepare(model, device)
    seed = _seed(settings, round_number)
    generator = torch.Generator().manual_seed(seed)
    steps = settings.local_epochs * (clips.num_clips // settings.batch_size)
    rate = None if settings.constant_rate else schedule(optimizer, settings, steps, round_number)
    sums = torch.zeros(2, device=device)  # of the batches' losses and accuracies
    model.train()
    with _seeded(seed, device):
        for items in draw_batches(clips.labels, clips.num_clips, settings, generator):
            inputs, labels = clips.batch(items)
            logits = model.head(inputs) if model.frozen else model(vary(inputs, generator))
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rate is not None:
                rate.step()
            sums += torch.stack([loss.detach(), (logits.argmax(-1) == labels).float().mean()])
    loss_mean, accuracy = (sums / steps).tolist()
    return {"loss": loss_mean, "accuracy": accuracy}


def draw_batches(
    labels: np.ndarray, num_clips: int, settings: TrainingSettings, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """Items (batch_size,), drawn from `labels` (items,) so that every label is as likely as any other.

    An epoch has as many full batches as `num_clips` make.
    """
    weights = 1.0 / np.bincount(labels)[labels]
    draws = num_clips // settings.batch_size * settings.batch_size
    sampler = WeightedRandomSampler(weights.tolist(), draws, generator=generator)
    for _ in range(settings.local_epochs):
        yield from np.array(list(sampler)).reshape(-1, settings.batch_size)


def vary(input_features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Log-mel (batch, n_mels, frames) as other speakers in other places might have said the clips.

    Each is stretched at random in time, around half a second, and in frequency, shifted in time, and made louder or
    softer. Of all that was tried on a thousand clips of Speech Commands, this raised the accuracy on new speakers most.
    """
    batch, n_mels, frames = input_features.shape
    in_time, in_frequency, shift, level = 2 * torch.rand(4, batch, generator=generator) - 1
    in_time, in_frequency = torch.exp(MAX_STRETCH * in_time), torch.exp(MAX_STRETCH * in_frequency)
    middle = FRAMES_PER_S * 2 / frames - 1  # half a second, where grid_sample counts from -1 to 1
    where = torch.zeros(batch, 2, 3)
    where[:, 0, 0] = in_time
    where[:, 0, 2] = (1 - in_time) * middle + shift * MAX_SHIFT_FRAMES * 2 / frames
    where[:, 1, 1] = in_frequency
    where[:, 1, 2] = in_frequency - 1  # the lowest band stays
    grid = F.affine_grid(where, [batch, 1, n_mels, frames], align_corners=False).to(input_features.device)
    varied = F.grid_sample(input_features[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return varied + (MAX_LEVEL * level[:, None, None]).to(input_features.device)


def validate_clips(
    model: WhisperForKeywords, clips: WhisperClips, device: str, batch_size: int = 64
) -> dict[str, float]:
    """Cross-entropy (nats, lower is better) and accuracy (higher is better) over all clips.

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
    """Dropout draws from torch's global generators: seed them, and leave them as they were."""
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        yield
