"""Training and validation of one round, in plain PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import evaluate
import numpy as np
import torch

from openfl_audio.node.progress import report
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.training.private_round import is_private, train_privately, trains_privately
from openfl_audio.training.private_steps import each_alone
from workspaces.sound_events.data import Patches
from workspaces.sound_events.loss import Loss, binary_cross_entropy

# On an accelerator. More take more memory: gradients of each patch are kept.
PRIVATE_PATCHES_PER_PASS = 16
METRICS = Path(__file__).parent / "metrics"
METRIC_NAMES = ("pr_auc", "pr_auc_macro", "mean_average_precision", "d_prime", "d_prime_mean", "lwlrap")
# What they are means over. Most are no means: a threshold or a rank compares all clips with each other.
MEAN_OVER = {
    "loss": "clips",
    "lwlrap": "labels",
    **dict.fromkeys(("pr_auc", "pr_auc_macro", "mAP", "d_prime", "d_prime_mean")),
}


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training in each round; `loss` makes a scalar of logits and labels (batch, classes)."""

    local_epochs: int = 1
    batch_size: int = 64
    seed: int = 0
    loss: Loss = binary_cross_entropy


@trains_privately
def train_round(
    model: torch.nn.Module,
    patches: Patches,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`. Returns the mean loss over the patches of all epochs.

    A private round takes one patch of each recording that is drawn, and returns nothing.
    """
    model.train().to(device)
    if is_private():
        return _train_privately(model, patches, optimizer, device, settings.loss)
    steps = settings.local_epochs * math.ceil(len(patches) / settings.batch_size)
    total, step, seen = 0.0, 0, 0
    for epoch in range(settings.local_epochs):
        for _, inputs, labels in patches.batches(settings.batch_size, (settings.seed, round_number, epoch), device):
            loss = settings.loss(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, step, seen = total + loss.item() * len(inputs), step + 1, seen + len(inputs)
            report(step, steps, clips=seen, loss=loss)
    return {"loss": total / (settings.local_epochs * len(patches))}


def _train_privately(
    model: torch.nn.Module, patches: Patches, optimizer: torch.optim.Optimizer, device: str, loss: Loss
) -> dict[str, float]:
    def losses(chosen: Sequence[int]) -> torch.Tensor:
        inputs, labels = patches.at(np.asarray(chosen), device)
        return each_alone(loss, model(inputs), labels)

    recordings = patches.clip.tolist()
    return train_privately(model, optimizer, [""] * len(patches), losses, PRIVATE_PATCHES_PER_PASS, recordings)


def validate_clips(model: torch.nn.Module, patches: Patches, device: str, batch_size: int = 64) -> dict[str, float]:
    """Return loss (nats, lower is better) and the metrics of metrics/ (higher is better) of all clips.

    The mean over clients of PR-AUCs, mAP and d's is not their value over all clips: one client that has them all should
    validate, or lwlrap or the loss choose the model. A metric is NaN if these clips have too few labels to define it.
    """
    scores, loss = score_clips(model, patches, device, batch_size)
    metrics = {"loss": loss}
    for name in METRIC_NAMES:
        metric = evaluate.load(str(METRICS / f"{name}.py"))
        metrics |= metric.compute(predictions=scores, references=patches.clip_labels)
    return metrics | {"lwlrap": MeanOver(metrics["lwlrap"], int(patches.clip_labels.sum()))}


@torch.no_grad()
def score_clips(
    model: torch.nn.Module, patches: Patches, device: str, batch_size: int = 64
) -> tuple[np.ndarray, float]:
    """Return scores float32 (clips, classes), means over a clip's patches of sigmoid(logit), and the mean loss.

    With the normalisations "evaluation_batch" and "fedbn" they depend on the other clips and on `batch_size`. For these
    patches are mixed, the same way at every call: a batch is then like those of training, and not one long clip.
    """
    model.eval().to(device)
    sums = np.zeros(patches.clip_labels.shape)
    total = 0.0
    for clip, inputs, labels in patches.batches(batch_size, (0,), device):
        logits = model(inputs)
        np.add.at(sums, clip, logits.sigmoid().cpu().numpy())
        total += binary_cross_entropy(logits, labels).item() * len(inputs)
    patches_per_clip = np.bincount(patches.clip, minlength=len(sums))
    return (sums / patches_per_clip[:, None]).astype(np.float32), total / len(patches)
