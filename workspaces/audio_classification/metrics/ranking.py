"""AUROC and mAP as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

_DESCRIPTION = """Means over classes of how well scores put the clips of a class before the others. AUROC is the
probability that a clip of the class has a higher score than one that is not (ties count half); average precision is the
sum over thresholds of (recall step) * precision. Higher is better, 1 is perfect. A class that all clips or none of them
have has no AUROC, one without a clip has no average precision, and these are left out of the means."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    auroc, mAP: floats in [0, 1], NaN where no class has one.
        No means of parts: over several nodes they need the scores of all clips in one place.
"""


class Ranking(evaluate.Metric):
    """Metric of the areas under curves, means over classes; see its description."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        present = labels.any(axis=0)
        both = present & ~labels.all(axis=0)
        return {
            "auroc": _mean(roc_auc_score, labels[:, both], scores[:, both]),
            "mAP": _mean(average_precision_score, labels[:, present], scores[:, present]),
        }


def _mean(score: Callable[..., float], labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean of a score over classes, the columns; NaN where there is none."""
    return float(score(labels, scores, average="macro")) if labels.shape[1] else float("nan")
