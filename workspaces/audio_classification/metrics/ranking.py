"""AUROC and mAP as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from openfl_audio.training.clip_metric import ClipMetric


class Ranking(ClipMetric):
    """AUROC and mAP: means over classes of how well scores put the clips of a class before the others.

    AUROC is the probability that a clip of the class has a higher score than one that is not (ties count half);
    average precision is the sum over thresholds of (recall step) * precision. Higher is better, 1 is perfect. A class
    that all clips or none of them have has no AUROC, one without a clip has no average precision, and these are left
    out of the means.
    """

    returns = (
        "auroc, mAP: floats in [0, 1], NaN where no class has one. No means of parts: over several nodes they "
        "need the scores of all clips in one place."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        present = labels.any(axis=0)
        both = present & ~labels.all(axis=0)
        return {
            "auroc": _mean(roc_auc_score, labels[:, both], scores[:, both]),
            "mAP": _mean(average_precision_score, labels[:, present], scores[:, present]),
        }


def _mean(score: Callable[..., float], labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean of a score over classes, the columns; NaN where there is none."""
    return float(score(labels, scores, average="macro")) if labels.shape[1] else float("nan")
