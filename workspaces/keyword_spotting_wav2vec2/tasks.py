"""Training and validation of one round with Hugging Face's Trainer."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments

from openfl_audio.training.private_round import is_private, steps_of_round, train_privately, trains_privately
from openfl_audio.training.schedules import linear_schedule
from openfl_audio.training.trainer_progress import ReportSteps
from workspaces.keyword_spotting.tasks import ACCURACY
from workspaces.keyword_spotting_wav2vec2.data import TrainClips


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training in each round, which are the Trainer's.

    `batch_size` is that of each GPU: the Trainer uses all that are visible. An optimizer step sums `accumulate`
    batches, and gradients of a larger norm than `clip_grad_norm` are scaled down to it, or left alone with 0.
    `autocast` is the precision of training.
    """

    rounds: int
    local_epochs: int = 1
    batch_size: int = 32
    warmup: float = 0.05  # share of all steps
    seed: int = 0
    accumulate: int = 1
    clip_grad_norm: float = 1.0
    autocast: str = "float32"


@trains_privately
def train_round(
    model: torch.nn.Module,
    clips: TrainClips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`. Returns the mean loss over the clips of all epochs.

    A private round draws each clip of the shard alike, takes it as it is, and returns nothing. It has private steps in
    place of the Trainer's, whose settings of batches, of precision and of gradients' norms have no say in it.
    """
    clips.begin_round(round_number)
    if is_private():
        return _train_privately(model, clips, optimizer, device, round_number, settings)
    arguments = _arguments(
        device,
        settings.batch_size,
        num_train_epochs=settings.local_epochs,
        # Another order of clips in every round.
        seed=settings.seed + round_number,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=settings.clip_grad_norm,
        bf16=settings.autocast == "bfloat16",
        fp16=settings.autocast == "float16",
    )
    steps = count_steps(len(clips), arguments)
    trainer = _trainer(
        model=model,
        args=arguments,
        train_dataset=clips,
        optimizers=(optimizer, linear_schedule(optimizer, settings.warmup, settings.rounds, round_number, steps)),
    )
    trainer.train()
    return {"loss": float(trainer.loss_sum) / (settings.local_epochs * len(clips))}


def _train_privately(
    model: torch.nn.Module,
    clips: TrainClips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    torch.nn.Module.to(model.train(), device)  # transformers has its own without types
    rate = linear_schedule(optimizer, settings.warmup, settings.rounds, round_number, steps_of_round())

    def losses(chosen: Sequence[int]) -> torch.Tensor:
        drawn = [clips.unchanged(clip) for clip in chosen]
        inputs = torch.from_numpy(np.stack([each["input_values"] for each in drawn])).to(device)
        labels = torch.tensor([each["labels"] for each in drawn], device=device)
        return F.cross_entropy(model(input_values=inputs).logits, labels, reduction="none")

    # One by one: Opacus does not find the gradients where the embedding of masked frames is trained.
    return train_privately(model, optimizer, clips.speakers, losses, after_step=rate.step)


def count_steps(clips: int, arguments: TrainingArguments) -> int:
    """Return how many steps the Trainer takes in a round.

    On several GPUs a batch has `batch_size` clips for each of them.
    """
    batches = math.ceil(clips / arguments.train_batch_size)
    return int(arguments.num_train_epochs) * math.ceil(batches / arguments.gradient_accumulation_steps)


def validate_clips(model: torch.nn.Module, dataset: Dataset, device: str, batch_size: int = 64) -> dict[str, float]:
    """Return cross-entropy (nats, lower is better) and accuracy (higher is better) over all clips of `dataset`."""
    trainer = _trainer(model=model, args=_arguments(device, batch_size), compute_metrics=_accuracy)
    metrics = trainer.evaluate(dataset)
    return {"loss": metrics["eval_loss"], "accuracy": metrics["eval_accuracy"]}


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    metric = evaluate.load(str(ACCURACY))
    return metric.compute(predictions=np.argmax(prediction.predictions, axis=-1), references=prediction.label_ids)


class _ClipTrainer(Trainer):
    """Sums the loss over clips. The Trainer's mean over steps counts a last batch that is not full as a full one."""

    loss_sum: float | torch.Tensor = 0.0

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *more: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *more)
        # The Trainer divides the loss of a batch by the number of those that a step sums.
        batches = getattr(self, "current_gradient_accumulation_steps", 1)
        self.loss_sum = self.loss_sum + loss.detach() * batches * len(inputs["labels"])
        return loss


def _trainer(**arguments: Any) -> _ClipTrainer:
    trainer = _ClipTrainer(**arguments)
    # It takes Wav2Vec2's loss for one that is divided by the clips of all accumulated batches, which it is not, and
    # would add up gradients instead of averaging them.
    trainer.model_accepts_loss_kwargs = False
    # It prints a line of metrics at every step of a run; they are the task's result.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ReportSteps())
    return trainer


def _arguments(device: str, batch_size: int, **training: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(Path(tempfile.gettempdir()) / "openfl-audio-trainer"),  # nothing is saved there
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        use_cpu=device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # A loss that is no number is reported, instead of being left out of the mean.
        logging_nan_inf_filter=False,
        dataloader_pin_memory=device != "cpu",
        **training,
    )
