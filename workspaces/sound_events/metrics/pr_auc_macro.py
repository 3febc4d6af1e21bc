"""Macro PR-AUC as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import auc, precision_recall_curve

_DESCRIPTION = """The mean over classes of the area under the precision-recall curve, by the trapezoidal rule, that is
macro-averaged: a rare class counts as much as a frequent one, which pr_auc, the area of all decisions together, does
not. Higher is better, 1 is perfect. Classes without a positive clip have no area and are left out."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    pr_auc_macro: float in [0, 1], NaN where no class has a positive clip.
        No mean of parts: over several nodes it needs the scores of all clips in one place.
"""


class PrAucMacro(evaluate.Metric):
    """Metric of the mean over classes of the area under the precision-recall curve; see its description."""

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
        areas = []
        for column, truth in zip(scores.T, labels.T, strict=True):
            if truth.any():
                precision, recall, _ = precision_recall_curve(truth, column)
                areas.append(auc(recall, precision))
        return {"pr_auc_macro": float(np.mean(areas)) if areas else float("nan")}
