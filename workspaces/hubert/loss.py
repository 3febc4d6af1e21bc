"""Objectives of HuBERT: losses and metrics as sums over frames, which add up over batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from workspaces.hubert.data import Batch
from workspaces.hubert.model import Hubert

Sums = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FrameCounts:
    """Frames of all batches that make one step of the optimizer."""

    masked: int
    frames: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "FrameCounts":
        return cls(sum(int(batch.mask.sum()) for batch in batches), sum(int(batch.frames.sum()) for batch in batches))


class Objective(Protocol):
    """A loss, lower is better, that is a mean over frames."""

    def __call__(self, model: Hubert, batch: Batch, counts: FrameCounts) -> tuple[torch.Tensor, Sums]:
        """Return the part of `batch` in the loss of a step over `counts`, and sums over its frames."""

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Return the metrics of sums over any number of batches: the loss, and whatever shows how it comes about."""


@dataclass(frozen=True)
class MaskedPrediction:
    """Cross-entropy of the cluster of each frame, in nats.

    With CE_t at frame t, M the masked and U the other frames, and x (frames, channels) what the convolutions give:

        L = (sum_M CE_t + w * sum_U CE_t) / (|M| + w * |U|) + p * mean(x^2)

    w is `unmasked_weight`, 0 in the paper (Hsu et al., arXiv 2106.07447, equation 2, where alpha is 1); p is
    `feature_penalty`, 10 in fairseq's recipe. Padding is in none of the sums.
    """

    unmasked_weight: float = 0.0
    feature_penalty: float = 10.0

    def __call__(self, model: Hubert, batch: Batch, counts: FrameCounts) -> tuple[torch.Tensor, Sums]:
        features, output = predict(model, batch)
        real = batch.real
        masked, sums = _cross_entropy(model, output, batch, batch.mask, "masked")
        # Where they have no weight, their accuracy is still of interest.
        with torch.set_grad_enabled(self.unmasked_weight > 0 and torch.is_grad_enabled()):
            unmasked, others = _cross_entropy(model, output, batch, real & ~batch.mask, "unmasked")
        squares = features[real].float().square().mean(-1).sum()
        weight = counts.masked + self.unmasked_weight * (counts.frames - counts.masked)
        loss = (masked + self.unmasked_weight * unmasked) / weight + self.feature_penalty * squares / counts.frames
        return loss, sums | others | {"feature_squares": squares.detach()}

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Return `loss`, and the shares of frames whose cluster is right (higher is better), masked and not.

        Further metrics are perplexity, exp of the mean masked cross-entropy (lower is better), cluster_usage, the share
        of clusters that are predicted at all where it is masked, and masked_share of all frames.
        """
        masked, unmasked = float(sums["masked_frames"]), float(sums["unmasked_frames"])
        frames = masked + unmasked
        cross_entropy = sums["masked_loss"] + self.unmasked_weight * sums["unmasked_loss"]
        loss = cross_entropy / (masked + self.unmasked_weight * unmasked)
        return {
            "loss": float(loss + self.feature_penalty * sums["feature_squares"] / frames),
            "perplexity": float((sums["masked_loss"] / masked).exp()),
            "masked_accuracy": float(sums["masked_correct"]) / masked,
            "unmasked_accuracy": float(sums["unmasked_correct"]) / max(unmasked, 1.0),
            "cluster_usage": float((sums["masked_predicted"] > 0).double().mean()),
            "masked_share": masked / frames,
        }


def predict(model: Hubert, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of the convolutions and outputs of the transformer, which does not see the masked ones.

    Their shapes are (batch, frames, channels) and (batch, frames, width).
    """
    features = model.convolve(batch.waveforms, batch.lengths)
    return features, model.finish(model.encode(features, batch.frames, batch.mask))


def _cross_entropy(
    model: Hubert, output: torch.Tensor, batch: Batch, chosen: torch.Tensor, name: str
) -> tuple[torch.Tensor, Sums]:
    """Return the sum over the `chosen` frames (batch, frames), and what is counted there."""
    logits, targets = model.logits(output[chosen]), batch.targets[chosen]
    loss = F.cross_entropy(logits, targets, reduction="sum")
    predicted = logits.argmax(-1)
    return loss, {
        f"{name}_frames": chosen.sum(),
        f"{name}_loss": loss.detach(),
        f"{name}_correct": (predicted == targets).sum(),
        f"{name}_predicted": torch.bincount(predicted, minlength=logits.shape[-1]),
    }
