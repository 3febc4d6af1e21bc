"""Connectionist temporal classification."""

import torch
import torch.nn.functional as F

from openfl_audio.errors import SettingsError
from workspaces.speech_recognition.data import Batch
from workspaces.speech_recognition.letters import BLANK, frames_needed
from workspaces.speech_recognition.model import Recognizer


def ctc_loss(model: Recognizer, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Return -ln of the probability of the transcripts, summed over the batch; lower is better, 0 is perfect.

    P(text) is the sum, over all ways to lay its letters out over the frames, of the product of the frames'
    probabilities (Graves et al., ICML 2006, equation 3). `logits` (batch, frames, CLASSES) are of the model.
    Raises SettingsError, naming the clip, where there is no such way.
    """
    frames = model.count_frames(batch.lengths)
    for name, text, available in zip(batch.names, batch.texts, frames.tolist(), strict=True):
        if available < frames_needed(text):
            raise SettingsError(f"clip {name} has {available} frames: its transcript needs {frames_needed(text)}")
    # In float32, and not on a GPU, where its backward pass adds up in an order that changes from run to run.
    probabilities = logits.float().log_softmax(-1).transpose(0, 1).cpu()
    return F.ctc_loss(probabilities, batch.targets, frames, batch.target_lengths, blank=BLANK, reduction="sum")
