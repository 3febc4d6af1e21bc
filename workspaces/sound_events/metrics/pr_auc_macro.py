"""Macro PR-AUC as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import numpy as np
from sklearn.metrics import auc, precision_recall_curve

from openfl_audio.training.clip_metric import ClipMetric


class PrAucMacro(ClipMetric):
    """Mean over classes of the area under the precision-recall curve.

    It is macro-averaged, by the trapezoidal rule: a rare class counts as much as a frequent one, which pr_auc, the
    area of all decisions together, does not. Higher is better, 1 is perfect. Classes without a positive clip have no
    area and are left out.
    """

    returns = (
        "pr_auc_macro: float in [0, 1], NaN where no class has a positive clip. No mean of parts: over "
        "several nodes it needs the scores of all clips in one place."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        areas = []
        for column, truth in zip(scores.T, labels.T, strict=True):
            if truth.any():
                precision, recall, _ = precision_recall_curve(truth, column)
                areas.append(auc(recall, precision))
        return {"pr_auc_macro": float(np.mean(areas)) if areas else float("nan")}
