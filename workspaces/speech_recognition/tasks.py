"""Training and validation of one round, in plain PyTorch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import evaluate
import numpy as np
import torch

from openfl_audio.node.progress import report
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.training.private_round import is_private, steps_of_round, train_privately, trains_privately
from openfl_audio.training.schedules import linear_rates, set_in_turn, set_rate
from workspaces.speech_recognition.data import BatchSize, Clips
from workspaces.speech_recognition.letters import LETTERS, comparable
from workspaces.speech_recognition.masks import Masks
from workspaces.speech_recognition.model import Recognizer

ERROR_RATES = Path(__file__).parent / "metrics" / "error_rates.py"
# Means over words; the character error rate is one over characters.
OF_WORDS = ("wer", "substitutions", "deletions", "insertions")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of an envoy's training.

    Attributes:
        rounds: of the experiment.
        learning_rate: the peak of a linear warm-up and decay over all rounds.
        local_epochs: passes over the clips in a round.
        batch_size: clips of a batch at most.
        batch_s: seconds of a batch at most, with the padding; None is no bound.
        warmup: share of all rounds' steps in which the rate rises.
        clip_grad_norm: largest norm of the gradients.
        masks: SpecAugment, or None.
        mixed_precision: bfloat16 where that is exact enough.
    """

    rounds: int
    learning_rate: float
    local_epochs: int = 1
    batch_size: int = 8
    batch_s: float | None = None
    warmup: float = 0.1
    clip_grad_norm: float = 1.0
    masks: Masks | None = None
    mixed_precision: bool = False


@trains_privately
def train_round(
    model: Recognizer,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """Train `model` in place for `settings.local_epochs`.

    Order, masks and dropout follow from torch's global generator, which an envoy seeds by round and client. Returns the
    mean loss over the letters or tokens (nats), each clip's as it was before its step, and the last learning rate.
    A private round takes each clip as it is, with the mean loss over its own letters or tokens, and returns nothing.
    Raises ValueError if there are no clips.
    """
    if not len(clips):
        raise ValueError("there are no clips with a transcript to train with")
    torch.nn.Module.to(model, device)  # transformers has its own without types
    model.train()
    if is_private():
        return _train_privately(model, clips, optimizer, device, round_number, settings)
    generator = np.random.default_rng(int(torch.randint(2**62, ())))
    size = BatchSize(settings.batch_size, settings.batch_s)
    batches = [batch for _ in range(settings.local_epochs) for batch in clips.cut_epoch(size, generator)]
    total, units, heard, rate = 0.0, 0, 0, 0.0
    rates = _rates(settings, round_number, len(batches))
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        set_rate(optimizer, rate)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.mixed_precision):
            loss, number = model.loss_of(clips.read(batch), device, settings.masks)
        optimizer.zero_grad()
        (loss / number).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad_norm)
        optimizer.step()
        total, units, heard = total + loss.item(), units + number, heard + len(batch)
        report(step, len(batches), clips=heard, loss=total / units)
    return {"loss": total / units, "learning_rate": rate}


def _train_privately(
    model: Recognizer,
    clips: Clips,
    optimizer: torch.optim.Optimizer,
    device: str,
    round_number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    def losses(chosen: Sequence[int]) -> torch.Tensor:
        alone = [model.loss_of(clips.read([clip]), device) for clip in chosen]
        return torch.stack([loss / number for loss, number in alone])

    set_next_rate = set_in_turn(optimizer, _rates(settings, round_number, steps_of_round()))
    return train_privately(model, optimizer, clips.speakers, losses, after_step=set_next_rate)


def _rates(settings: TrainingSettings, round_number: int, steps: int) -> Iterator[float]:
    return linear_rates(settings.learning_rate, settings.warmup, settings.rounds, round_number, steps)


def validate_clips(
    model: Recognizer,
    clips: Clips,
    device: str,
    batch_size: int = 16,
    normalizer: str = "letters",
    letters: str = LETTERS,
) -> dict[str, float]:
    """Return the loss (nats a letter or token) and the metrics of metrics/error_rates.py over all clips.

    Lower is better for all of them. Texts are compared as `letters.comparable` writes them.

    Raises ValueError if there are no clips.
    """
    if not len(clips):
        raise ValueError("there are no clips with a transcript to validate with")
    recognized, total, units = recognize_all(model, clips, device, batch_size)
    rates = error_rates([comparable(text, normalizer, letters) for text in recognized], clips.texts)
    return {"loss": MeanOver(total / units, units), **rates}


@torch.inference_mode()
def recognize_all(model: Recognizer, clips: Clips, device: str, batch_size: int = 16) -> tuple[list[str], float, int]:
    """Return the recognized text of each clip, the sum of the loss, and what that is a sum over."""
    torch.nn.Module.to(model, device)
    model.eval()
    texts = [""] * len(clips)
    total, units = 0.0, 0
    for positions, batch in clips.validation_batches(BatchSize(batch_size)):
        loss, number, recognized = model.recognize(batch, device)
        total, units = total + loss.item(), units + number
        for position, text in zip(positions, recognized, strict=True):
            texts[position] = text
    return texts, total, units


def error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Return the metrics of metrics/error_rates.py, with what they are means over."""
    rates = _error_rates().compute(predictions=predictions, references=references)
    words, characters = sum(len(text.split()) for text in references), sum(map(len, references))
    of_words: dict[str, float] = {name: MeanOver(rates[name], words) for name in OF_WORDS}
    return of_words | {"cer": MeanOver(rates["cer"], characters)}


def rates_by_speaker(recognized: list[str], clips: Clips) -> dict[str, float]:
    """Return the word error rate of each speaker who is known."""
    of_speaker: dict[str, list[int]] = {}
    for clip, speaker in enumerate(clips.speakers):
        if speaker:
            of_speaker.setdefault(speaker, []).append(clip)
    return {
        speaker: error_rates([recognized[clip] for clip in own], [clips.texts[clip] for clip in own])["wer"]
        for speaker, own in sorted(of_speaker.items())
    }


@lru_cache
def _error_rates() -> evaluate.EvaluationModule:
    # In memory: loading takes a second, and files would be written at each use.
    return evaluate.load(str(ERROR_RATES), keep_in_memory=True)
