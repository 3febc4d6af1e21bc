"""Training and validation of one round, in plain PyTorch."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import evaluate
import numpy as np
import torch

from openfl_audio.node.progress import report
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.training.schedules import linear_rate, set_rate
from workspaces.speech_recognition.data import Clips
from workspaces.speech_recognition.letters import decode
from workspaces.speech_recognition.loss import ctc_loss
from workspaces.speech_recognition.model import Recognizer

ERROR_RATES = Path(__file__).parent / "metrics" / "error_rates.py"


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training; `warmup` is the share of all rounds' steps in which the rate rises."""

    rounds: int
    learning_rate: float
    local_epochs: int = 1
    batch_size: int = 8
    warmup: float = 0.1
    clip_grad_norm: float = 1.0


def train_round(
    model: Recognizer,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`, by CTC.

    Order and dropout follow from torch's global generator, which an envoy seeds by round and client. Returns the mean
    loss over the letters (nats), each clip's as it was before its step, and the last learning rate. Raises ValueError
    if there are no clips.
    """
    if not len(clips):
        raise ValueError("there are no clips with a transcript to train with")
    torch.nn.Module.to(model, device)  # transformers has its own without types
    model.train()
    generator = np.random.default_rng(int(torch.randint(2**62, ())))
    steps = settings.local_epochs * math.ceil(len(clips) / settings.batch_size)
    total, letters, step, heard = 0.0, 0, 0, 0
    for _ in range(settings.local_epochs):
        for batch in clips.train_batches(settings.batch_size, generator):
            rate = linear_rate(settings.learning_rate, settings.warmup, settings.rounds, round_number, step, steps)
            set_rate(optimizer, rate)
            loss = ctc_loss(model, batch, model(batch.waveforms.to(device), batch.lengths))
            optimizer.zero_grad()
            (loss / len(batch.targets)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad_norm)
            optimizer.step()
            total, letters, step = total + loss.item(), letters + len(batch.targets), step + 1
            heard += len(batch.lengths)
            report(step, steps, clips=heard, loss=total / letters)
    return {"loss": total / letters, "learning_rate": rate}


def validate_clips(model: Recognizer, clips: Clips, device: str, batch_size: int = 16) -> dict[str, float]:
    """Return the loss (nats a letter) and the metrics of metrics/error_rates.py over all clips, decoded greedily.

    Lower is better for all of them.

    Raises ValueError if there are no clips.
    """
    if not len(clips):
        raise ValueError("there are no clips with a transcript to validate with")
    torch.nn.Module.to(model, device)
    model.eval()
    metric = _error_rates()
    total, letters = 0.0, 0
    with torch.inference_mode():
        for batch in clips.validation_batches(batch_size):
            logits = model(batch.waveforms.to(device), batch.lengths)
            total, letters = total + ctc_loss(model, batch, logits).item(), letters + len(batch.targets)
            best, frames = logits.argmax(-1).cpu(), model.count_frames(batch.lengths).tolist()
            predictions = [decode(clip[:n]) for clip, n in zip(best, frames, strict=True)]
            metric.add_batch(predictions=predictions, references=batch.texts)
    rates = metric.compute()
    characters = sum(map(len, clips.texts))
    return {"loss": MeanOver(total / letters, letters), **rates, "cer": MeanOver(rates["cer"], characters)}


@lru_cache
def _error_rates() -> evaluate.EvaluationModule:
    # In memory: loading takes a second, and files would be written at each use.
    return evaluate.load(str(ERROR_RATES), keep_in_memory=True)
