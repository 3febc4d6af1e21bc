"""Training and validation of one round, with clean references or without any."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import evaluate
import numpy as np
import torch

from openfl_audio.errors import SettingsError
from openfl_audio.node.progress import report
from openfl_audio.training.private_round import not_private
from openfl_audio.training.schedules import set_rate, stepwise_rate
from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.loss import (
    mixit_loss,
    si_sdr,
    speech_assignments,
    supervised_loss,
)
from workspaces.speech_enhancement.model import SudoRmRf, chunk_size

SI_SDRI = Path(__file__).parent / "metrics" / "si_sdri.py"
# Speech, and a noise for each of the two mixtures.
LEAST_OF_MIXIT = 3
NOISES = {"si_sdri_1_noise": 1, "si_sdri_2_noises": 2}
# (model's estimates, true sources) to the loss of each example, (batch,).
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training, on cuts of `num_samples`; the defaults are FedEnhance's.

    The learning rate is divided by `divide_lr_by` every `divide_lr_every` rounds, or never, with 0.
    """

    learning_rate: float
    local_epochs: float = 1.0
    batch_size: int = 6
    num_samples: int = 64_000
    clip_grad_norm: float = 5.0
    divide_lr_by: float = 2.0
    divide_lr_every: int = 0
    seed: int = 0


@not_private("a recording is a part of several mixtures, so that it would be in several units")
def train_round(
    model: SudoRmRf,
    clips: Sources,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`. Returns the mean loss over the steps, by the loss's name.

    The shard says which loss it is: `supervised_loss`, or `mixit_loss` where clean references are not to be had.

    Raises SettingsError for a model of two sources where they are not.
    """
    if not clips.supervised and model.sizes.num_sources < LEAST_OF_MIXIT:
        raise SettingsError(
            f"model.num_sources is {model.sizes.num_sources}, and this client has no clean speech (supervised: false): "
            f"there should be {LEAST_OF_MIXIT} at least"
        )
    rate = stepwise_rate(settings.learning_rate, settings.divide_lr_by, settings.divide_lr_every, round_number)
    set_rate(optimizer, rate)
    name, loss = ("supervised_loss", _supervised) if clips.supervised else ("mixit_loss", _mixit)
    model.train()
    losses: list[float] = []
    steps = count_steps(clips, settings)
    for sources in batches(clips, settings, round_number):
        optimizer.zero_grad()
        losses.append(accumulate_gradients(model, sources.to(device), loss))
        if settings.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad_norm)
        optimizer.step()
        report(len(losses), steps, clips=len(losses) * len(sources), loss=losses[-1])
    return {name: float(np.mean(losses))}


def batches(clips: Sources, settings: TrainingSettings, round_number: int) -> Iterator[torch.Tensor]:
    """Yield sources (batch, 3, num_samples) in another order every epoch, without a last batch that is not full.

    Of a fraction of an epoch there are as many batches, rounded. A client with less than one has a batch of all it has.
    """
    generator = np.random.default_rng((settings.seed, round_number))
    per_epoch = batches_per_epoch(clips, settings)
    for step in range(count_steps(clips, settings)):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            clips.begin_epoch(round_number * math.ceil(settings.local_epochs) + epoch)
            order = generator.permutation(len(clips))
        items = order[position * settings.batch_size :][: settings.batch_size]
        yield clips.crops(items, settings.num_samples, generator)


def count_steps(clips: Sources, settings: TrainingSettings) -> int:
    """Return how many batches a round has."""
    return max(1, round(settings.local_epochs * batches_per_epoch(clips, settings)))


def batches_per_epoch(clips: Sources, settings: TrainingSettings) -> int:
    """Return how many batches an epoch has."""
    return max(1, len(clips) // settings.batch_size)


def accumulate_gradients(model: SudoRmRf, sources: torch.Tensor, loss: Loss) -> float:
    """Add the gradients of the mean loss over `sources` (batch, 3, samples), and return it."""
    total = 0.0
    # No layer looks across examples, so the gradients of parts add up to those of the whole batch.
    for part in sources.split(chunk_size(sources.shape[-1], len(sources), sources.device.type)):
        part_loss = loss(model.separate(part.sum(dim=1)), part).sum() / len(sources)
        part_loss.backward()
        total += part_loss.item()
    return total


def validate_clips(model: SudoRmRf, clips: Sources, device: str, batch_size: int = 32) -> dict[str, float]:
    """Return the SI-SDR improvement of speech in dB over all clips, whole, with one noise and two; higher is better.

    As in FedEnhance the speech is the first estimate: no permutation is tried. There half of the clips have one noise,
    here every clip is heard both ways.
    """
    scores = score_clips(model, clips, device, batch_size)
    metric = evaluate.load(str(SI_SDRI), keep_in_memory=True)
    return {
        name: metric.compute(predictions=of_estimates, references=of_mixtures)["si_sdri"]
        for name, (of_estimates, of_mixtures) in scores.items()
    }


def spread_over_clips(model: SudoRmRf, clips: Sources, device: str, batch_size: int = 32) -> dict[str, float]:
    """Return median and standard deviation over clips of the improvements whose means `validate_clips` returns."""
    spread: dict[str, float] = {}
    for name, (of_estimates, of_mixtures) in score_clips(model, clips, device, batch_size).items():
        improvements = of_estimates - of_mixtures
        spread |= {f"{name}_median": float(np.median(improvements)), f"{name}_deviation": float(np.std(improvements))}
    return spread


def score_clips(
    model: SudoRmRf, clips: Sources, device: str, batch_size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the SI-SDR in dB of the estimates and of the mixtures, float32 (clips,) each, by the metric's name."""
    scores: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in NOISES}
    model.eval()
    for items in np.array_split(np.arange(len(clips)), math.ceil(len(clips) / batch_size)):
        sources = clips.whole(items)
        for name, noises in NOISES.items():
            mixtures = sources[:, : 1 + noises].sum(dim=1)
            speech = sources[:, 0]
            of_estimates = si_sdr(estimate=enhance(model, mixtures, device), reference=speech)
            scores[name].append((of_estimates, si_sdr(estimate=mixtures, reference=speech)))
    return {
        name: (torch.cat([each[0] for each in pairs]).numpy(), torch.cat([each[1] for each in pairs]).numpy())
        for name, pairs in scores.items()
    }


def enhance(model: SudoRmRf, mixtures: torch.Tensor, device: str) -> torch.Tensor:
    """Return the speech in `mixtures`: (batch, samples) to (batch, samples), on the CPU."""
    with torch.inference_mode():
        parts = mixtures.split(chunk_size(mixtures.shape[-1], len(mixtures), device))
        return torch.cat([model.separate(part.to(device))[:, 0].cpu() for part in parts])


def _supervised(estimate: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Return the loss on sources that a client knows apart. To a model of two sources all noise is one."""
    if estimate.shape[1] == 2:
        sources = torch.stack([sources[:, 0], sources[:, 1:].sum(dim=1)], dim=1)
    return supervised_loss(estimate=estimate, reference=sources)


def _mixit(estimate: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Return the loss on what an unsupervised client has: its noisy recording, and a noise by itself.

    Speech is the first estimate.
    """
    mixtures = torch.stack([sources[:, :2].sum(dim=1), sources[:, 2]], dim=1)
    return mixit_loss(estimate=estimate, mixtures=mixtures, assignments=speech_assignments(2, estimate.shape[1]))
