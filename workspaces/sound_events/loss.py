"""The loss of a tagger that may give a patch any number of classes."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from openfl_audio.config import find_function

# Logits and labels, float32 (batch, classes) both, to a scalar.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def find_loss(name: str) -> Loss:
    """Return a loss by its name in this module, or by the dotted name of a function of another one.

    Raises ValueError if there is none.
    """
    try:
        return find_function(name if "." in name else f"{__name__}.{name}")
    except ValueError as error:
        raise ValueError(f"there is no loss {name!r} ({error}): it should be binary_cross_entropy, or dotted") from None


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over patches and classes of -[y log p + (1 - y) log(1 - p)], p = sigmoid(logit); lower is better.

    `logits` and `labels` (0 or 1) are float32 (batch, classes); the result is a scalar in nats. Before training, at
    p = 1/2 for all, it is log 2.
    """
    return F.binary_cross_entropy_with_logits(logits, labels)
