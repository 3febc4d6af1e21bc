"""Training and validation of one round: plain loops for any module, with a loss for each kind of target."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import evaluate
import numpy as np
import torch
import torch.nn.functional as F

from openfl_audio.errors import PrivacyError
from openfl_audio.node.progress import report
from openfl_audio.training.bootstrap import bootstrap_interval
from openfl_audio.training.private_round import is_private, steps_of_round, train_privately, trains_privately
from openfl_audio.training.private_steps import each_alone
from openfl_audio.training.schedules import linear_rates, set_in_turn
from openfl_audio.training.together import ALONE, Share, train_together
from workspaces.audio_classification.data import Clips, draw_epoch
from workspaces.audio_classification.model import predict

RANKING = Path(__file__).parent / "metrics" / "ranking.py"
# A round may report a thousand metrics: three shares of each class, or one of each pair of classes as well.
MOST_COUNTED_CLASSES = 200
MOST_CONFUSED_CLASSES = 25
# Every other metric is a mean over clips. A rank compares the clips of all sites with each other.
MEAN_OVER = dict.fromkeys(("auroc", "mAP", "accuracy_low", "accuracy_high"))


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training in each round.

    Attributes:
        learning_rate: the peak of a linear warm-up and decay over all rounds; None leaves the optimizer's.
        warmup: share of all steps.
        balance: "sampling" draws every class equally often, "weights" weighs the loss so.
        label_smoothing: of the cross-entropy.
        accumulate: batches for one step of the optimizer.
        clip_norm: the largest norm of the gradients; None does not clip.
        mixed_precision: bfloat16 where that is exact enough.
        processes: how many processes of the node train together, each on a GPU of its own where there are as many.
    """

    rounds: int
    local_epochs: int = 1
    batch_size: int = 16
    learning_rate: float | None = None
    warmup: float = 0.05
    balance: Literal["none", "sampling", "weights"] = "none"
    label_smoothing: float = 0.0
    accumulate: int = 1
    clip_norm: float | None = None
    mixed_precision: bool = False
    processes: int = 1
    seed: int = 0


@trains_privately
def train_round(
    model: torch.nn.Module,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`. Returns the mean loss over the clips of all epochs.

    A private round draws each clip alike, varied once, and returns nothing. Raises PrivacyError if it would be
    balanced.
    """
    model.train().to(device)
    if is_private():
        return _train_privately(model, clips, optimizer, device, round_number, settings)
    # The task runner has seeded torch with a function of seed, round and client: two clients draw other numbers.
    given = clips, round_number, settings, torch.initial_seed()
    if settings.processes == 1:
        return _train(ALONE, model, optimizer, device, *given)
    return train_together(settings.processes, _train, model, optimizer, *given)


def _train(
    share: Share,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    device: str,
    clips: Clips,
    round_number: int,
    settings: TrainingSettings,
    drawn: int,
) -> dict[str, float]:
    """Train a process's share of each batch; `drawn` is a number that no other client has in this round."""
    model = share.prepare(model)
    weights = class_weights(clips).to(device) if settings.balance == "weights" else None
    seeds = [(settings.seed, round_number, epoch, drawn) for epoch in range(settings.local_epochs)]
    epochs = [draw_epoch(clips, settings.batch_size, settings.balance == "sampling", seed) for seed in seeds]
    steps = sum(math.ceil(len(batches) / settings.accumulate) for batches in epochs)
    set_next_rate = set_in_turn(optimizer, _rates(settings, round_number, steps))
    total, step, heard = 0.0, 0, 0
    for seed, batches in zip(seeds, epochs, strict=True):
        for first in range(0, len(batches), settings.accumulate):
            together = batches[first : first + settings.accumulate]
            number = sum(map(len, together))
            optimizer.zero_grad()
            for batch in together:
                own, scale = share.of(batch.tolist())
                inputs, labels = clips.batch(own, seed)
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.mixed_precision):
                    logits = predict(model, inputs.to(device))
                loss = loss_of(clips.targets.kind, logits.float(), labels.to(device), weights, settings.label_smoothing)
                (loss * scale * len(batch) / number).backward()
                total += loss.item() * scale * len(batch) / share.processes
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            set_next_rate()
            step, heard = step + 1, heard + number
            report(step, steps, clips=heard, loss=total * share.processes / heard)
    return {"loss": share.sum(total) / (settings.local_epochs * len(clips))}


def _train_privately(
    model: torch.nn.Module,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    if settings.processes > 1:
        raise PrivacyError(f"privacy is for one process, and processes is {settings.processes}: set it to 1")
    if settings.balance != "none":
        raise PrivacyError(f"balance '{settings.balance}' follows from the classes of private clips: set it to none")
    seed = (settings.seed, round_number, torch.initial_seed())
    loss = partial(loss_of, clips.targets.kind, label_smoothing=settings.label_smoothing)

    def losses(chosen: Sequence[int]) -> torch.Tensor:
        inputs, labels = clips.batch(chosen, seed)
        return each_alone(loss, predict(model, inputs.to(device)).float(), labels.to(device))

    set_next_rate = set_in_turn(optimizer, _rates(settings, round_number, steps_of_round()))
    return train_privately(model, optimizer, clips.groups, losses, after_step=set_next_rate)


def _rates(settings: TrainingSettings, round_number: int, steps: int) -> Iterator[float]:
    """Return the learning rates of a round's steps, or none where the optimizer's own is left."""
    if settings.learning_rate is None:
        return iter(())
    return linear_rates(settings.learning_rate, settings.warmup, settings.rounds, round_number, steps)


def loss_of(
    kind: str,
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the mean loss over clips, lower is better, of logits (batch, outputs).

    One label: cross-entropy in nats. Several: binary cross-entropy in nats, the mean over classes. A number: the
    squared error. `weights` (classes,) are of the classes; the mean is over clips, not over their weights.
    """
    if kind == "label":
        losses = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=label_smoothing)
        return losses.mean()
    if kind == "labels":
        return F.binary_cross_entropy_with_logits(logits, labels, weights)
    return F.mse_loss(logits[:, 0], labels)


def class_weights(clips: Clips) -> torch.Tensor:
    """Return weights of classes, float32 (classes,), with which all classes of this site weigh the same.

    The mean weight of its clips is 1, as is the weight of a class without a clip, and that of a number.
    """
    if clips.targets.kind == "number":
        return torch.ones(1)
    if clips.targets.kind == "label":
        counts = np.bincount(clips.encoded, minlength=clips.targets.num_outputs)
    else:
        counts = clips.encoded.sum(axis=0)
    there = counts > 0
    weights = np.where(there, counts.sum() / np.maximum(counts, 1) / max(1, there.sum()), 1)
    return torch.from_numpy(weights.astype(np.float32))


def validate_clips(model: torch.nn.Module, clips: Clips, device: str, batch_size: int = 32) -> dict[str, float]:
    """Return metrics, which but for those of MEAN_OVER are means over clips: those of several sites merge exactly.

    That is the loss (lower is better); with one label the accuracy, and for each class, by its number, the shares of
    clips that are of it (`true/0`), were taken for it (`predicted/0`), and both (`hit/0`), of which `macro_f1` is made,
    the accuracy's 95 % interval over groups, where there are two of them (`accuracy_low`, `accuracy_high`),
    and of up to 25 classes the share that is of one and was taken for another (`confused/0/1`); with several labels the
    first three shares; with either AUROC and mAP, means over classes; with a number the absolute error.
    """
    logits, labels = predict_all(model, clips, device, batch_size)
    kind = clips.targets.kind
    metrics = {"loss": loss_of(kind, logits, labels).item()}
    if kind == "number":
        return metrics | {"absolute_error": F.l1_loss(logits[:, 0], labels).item()}
    number = clips.targets.num_outputs
    if kind == "label":
        true, predicted = F.one_hot(labels, number).bool(), F.one_hot(logits.argmax(1), number).bool()
        correct = (true & predicted).any(1)
        metrics["accuracy"] = correct.float().mean().item()
        metrics |= accuracy_interval(correct.numpy(), clips.groups)
    else:
        true, predicted = labels > 0.5, logits > 0
    if number <= MOST_COUNTED_CLASSES:
        for name, cells in (("true", true), ("predicted", predicted), ("hit", true & predicted)):
            shares = cells.double().mean(0).tolist()
            metrics |= {f"{name}/{i}": share for i, share in enumerate(shares)}
    if kind == "label" and number <= MOST_CONFUSED_CLASSES:
        confused = (true.double().T @ predicted.double() / len(labels)).tolist()
        metrics |= {f"confused/{i}/{j}": confused[i][j] for i in range(number) for j in range(number) if i != j}
    scores = logits.softmax(1) if kind == "label" else logits
    ranking = evaluate.load(str(RANKING))
    return metrics | ranking.compute(predictions=scores.numpy(), references=true.float().numpy())


def accuracy_interval(correct: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Return the 95 % interval of the accuracy over groups that are drawn again; none of fewer than two groups.

    `correct` (clips,) says which clips were recognised. Clips without a group are groups of their own.
    """
    names = [group or f"\0{i}" for i, group in enumerate(groups)]
    _, group_of = np.unique(names, return_inverse=True)
    sizes = np.bincount(group_of)
    if len(sizes) < 2:
        return {}
    low, high = bootstrap_interval(np.bincount(group_of, weights=correct).tolist(), sizes.tolist())
    return {"accuracy_low": low, "accuracy_high": high}


@torch.no_grad()
def predict_all(
    model: torch.nn.Module, clips: Clips, device: str, batch_size: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (clips, outputs) and targets of all clips, on the CPU."""
    model.eval().to(device)
    batches = [
        (predict(model, inputs.to(device)).float().cpu(), labels) for inputs, labels in clips.batches(batch_size)
    ]
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def shares_by_class(metrics: Mapping[str, float], name: str) -> dict[int, float]:
    """Return the shares `name` of `validate_clips` by class. Classes of which a site tells nothing are not there."""
    return {int(key.split("/")[1]): share for key, share in metrics.items() if key.startswith(f"{name}/")}


def confusion(metrics: Mapping[str, float], number: int) -> np.ndarray:
    """Return the shares of clips by true and predicted class, (number, number), from shares of `validate_clips`.

    Shares of several sites may be merged before. What no site tells is NaN. Of many classes or of several labels there
    are none.
    """
    if not any(name.startswith("confused/") for name in metrics):
        return np.zeros((0, 0))
    names = [[f"confused/{i}/{j}" if i != j else f"hit/{i}" for j in range(number)] for i in range(number)]
    return np.array([[metrics.get(name, math.nan) for name in row] for row in names])


def macro_f1(metrics: Mapping[str, float]) -> float:
    """Return the mean over classes of F1, from the shares of `validate_clips`, also merged ones; higher is better.

    Classes without a clip, and those that no site tells of, do not count. F1 of a class is 2 hits / (true + predicted).
    """
    true, predicted, hit = (shares_by_class(metrics, name) for name in ("true", "predicted", "hit"))
    scores = [2 * hit[i] / (share + predicted[i]) for i, share in true.items() if share > 0]
    return float(np.mean(scores)) if scores else math.nan
