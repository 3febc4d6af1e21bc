"""The mean d' of the classes as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<this file>)`."""

from statistics import NormalDist

import numpy as np
from sklearn.metrics import roc_auc_score

from openfl_audio.training.clip_metric import ClipMetric


class DPrimeMean(ClipMetric):
    """Mean d' of the classes.

    d' = sqrt(2) * Phi^-1(AUC), with the area under the ROC curve of each class and the normal distribution function
    Phi. The mean is larger than d_prime, the d' of the mean area, where classes differ: the FSD50K paper's is that
    one. Higher is better, 0 is chance. Classes without a positive or without a negative clip are left out. An area of
    exactly 1 (or 0) counts as if half a pair of clips were in the other order.
    """

    returns = (
        "d_prime_mean: float, NaN where no class has both positive and negative clips. No mean of parts: over "
        "several nodes it needs the scores of all clips in one place."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        values = []
        for column, truth in zip(scores.T, labels.T, strict=True):
            positives = int(truth.sum())
            pairs = positives * (len(truth) - positives)
            if pairs:
                # A tie is half a pair.
                area = float(np.clip(roc_auc_score(truth, column), 0.5 / pairs, 1 - 0.5 / pairs))
                values.append(2**0.5 * NormalDist().inv_cdf(area))
        return {"d_prime_mean": float(np.mean(values)) if values else float("nan")}
