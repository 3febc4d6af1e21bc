"""Training of one round: that of HuBERT, and a private one, as a teacher takes the place of codebooks."""

from collections.abc import Sequence

import numpy as np
import torch

from openfl_audio.training.private_round import is_private, steps_of_round, train_privately, trains_privately
from openfl_audio.training.schedules import linear_rates, set_in_turn
from workspaces.hubert import tasks
from workspaces.hubert.data import Clips
from workspaces.hubert.loss import FrameCounts
from workspaces.hubert.tasks import TrainingSettings
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import Student


@trains_privately
def train_round(
    model: Student,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
    objective: Distillation,
) -> dict[str, float]:
    """Train `model` in place, as `workspaces.hubert.tasks.train_round` does, and return what that returns.

    A private round takes each clip by itself, or a part of a long one, with the mean loss over its own frames, and
    returns nothing. The settings of batches, of precision, of gradients' norms and of the proximal term have no say in
    it. The teacher should know none of the clips.
    """
    if is_private():
        return _train_privately(model, clips, optimizer, device, round_number, settings, objective)
    return tasks.train_round(model, clips, optimizer, device, round_number, settings, objective)


def _train_privately(
    model: Student,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
    objective: Distillation,
) -> dict[str, float]:
    torch.nn.Module.to(model, device).train()
    model.gradient_checkpointing = settings.gradient_checkpointing
    model.feature_grad_mult = settings.feature_grad_mult
    generator = np.random.default_rng(int(torch.randint(2**62, ())))

    def losses(chosen: Sequence[int]) -> torch.Tensor:
        alone = [clips.alone(clip, settings.max_clip_samples, generator).to(device) for clip in chosen]
        return torch.stack([objective(model, batch, FrameCounts.of([batch]))[0] for batch in alone])

    rates = linear_rates(settings.learning_rate, settings.warmup, settings.rounds, round_number, steps_of_round())
    return train_privately(model, optimizer, clips.speakers, losses, after_step=set_in_turn(optimizer, rates))
