"""Connectionist temporal classification."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from openfl_audio.errors import SettingsError
from workspaces.speech_recognition.letters import BLANK, LETTERS, encode, frames_needed


def ctc_loss(
    logits: torch.Tensor, frames: torch.Tensor, texts: Sequence[str], names: Sequence[str], letters: str = LETTERS
) -> torch.Tensor:
    """Return -ln of the probability of the transcripts, summed over the batch; lower is better, 0 is perfect.

    P(text) is the sum, over all ways to lay its letters out over the frames, of the product of the frames'
    probabilities (Graves et al., ICML 2006, equation 3).

    Args:
        logits: of the model, (batch, frames, 1 + letters).
        frames: of each clip, int64 (batch,).
        texts: normalized transcripts (batch,).
        names: of the clips (batch,).
        letters: class i + 1 is letters[i].

    Raises:
        SettingsError: there is no such way, in the clip that is named.
    """
    for name, text, available in zip(names, texts, frames.tolist(), strict=True):
        if available < frames_needed(text):
            raise SettingsError(f"clip {name} has {available} frames: its transcript needs {frames_needed(text)}")
    # In float32, and not on a GPU, where its backward pass adds up in an order that changes from run to run.
    probabilities = logits.float().log_softmax(-1).transpose(0, 1).cpu()
    targets, lengths = torch.tensor(encode("".join(texts), letters)), torch.tensor([len(text) for text in texts])
    return F.ctc_loss(probabilities, targets, frames, lengths, blank=BLANK, reduction="sum")
