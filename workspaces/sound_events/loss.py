"""The loss of a tagger that may give a patch any number of classes."""

import torch
from torch.nn import functional as F


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over patches and classes of -[y log p + (1 - y) log(1 - p)], p = sigmoid(logit); lower is better.

    `logits` and `labels` (0 or 1) are float32 (batch, classes); the result is a scalar in nats. Before training, at
    p = 1/2 for all, it is log 2.
    """
    return F.binary_cross_entropy_with_logits(logits, labels)
