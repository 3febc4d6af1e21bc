"""PR-AUC as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import numpy as np
from sklearn.metrics import auc, precision_recall_curve

from openfl_audio.training.clip_metric import ClipMetric


class PrAuc(ClipMetric):
    """Area under the precision-recall curve of all decisions (clip, class) together.

    It is micro-averaged, by the trapezoidal rule: what Green & Plumbley (arXiv 2105.08550) choose their models by.
    Higher is better, 1 is perfect, and chance is the share of positive labels. Scores of different classes are
    compared with each other: see mean_average_precision for the mean over classes.
    """

    returns = (
        "pr_auc: float in [0, 1], NaN where no label is 1. No mean of parts: over several nodes it needs the "
        "scores of all clips in one place."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        decisions = np.ravel(labels)
        if not decisions.any():
            return {"pr_auc": float("nan")}
        precision, recall, _ = precision_recall_curve(decisions, np.ravel(scores))
        return {"pr_auc": float(auc(recall, precision))}
