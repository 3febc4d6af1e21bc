"""d' as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

from statistics import NormalDist

import numpy as np
from sklearn.metrics import roc_auc_score

from openfl_audio.training.clip_metric import ClipMetric


class DPrime(ClipMetric):
    """d' of the mean area under the ROC curve of the classes.

    d' = sqrt(2) * Phi^-1(AUC), where AUC is the mean over classes of the area under the ROC curve and Phi the normal
    distribution function, as in the FSD50K paper (Fonseca et al., arXiv 2010.00475). Higher is better, 0 is chance.
    Classes without a positive or without a negative clip have no AUC and are left out. A mean AUC of exactly 1 (or 0)
    counts as if half a pair of clips were in the other order, where d' would be infinite; no other AUC is that close
    to it.
    """

    returns = (
        "d_prime: float, NaN where no class has both positive and negative clips. No mean of parts: over "
        "several nodes it needs the scores of all clips in one place."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        scored = labels.any(axis=0) & ~labels.all(axis=0)
        if not scored.any():
            return {"d_prime": float("nan")}
        area = roc_auc_score(labels[:, scored], scores[:, scored], average="macro")
        # A class has (clips / 2)^2 pairs of a positive and a negative clip at most, and a tie is half a pair.
        half_a_pair = 2 / (scored.sum() * len(labels) ** 2)
        area = float(np.clip(area, half_a_pair, 1 - half_a_pair))
        return {"d_prime": 2**0.5 * NormalDist().inv_cdf(area)}
