"""mAP as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import numpy as np
from sklearn.metrics import average_precision_score

from openfl_audio.training.clip_metric import ClipMetric


class MeanAveragePrecision(ClipMetric):
    """Mean over classes of average precision, mAP.

    AP = sum over thresholds of (recall step) * precision; the mean is macro-averaged, as in the FSD50K paper (Fonseca
    et al., arXiv 2010.00475). Higher is better, 1 is perfect. Classes without a positive clip have no AP and are left
    out; clips with equal scores are one threshold.
    """

    returns = (
        "mAP: float in [0, 1], NaN where no class has a positive clip. No mean of parts: over several nodes "
        "it needs the scores of all clips in one place."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        present = labels.any(axis=0)
        if not present.any():
            return {"mAP": float("nan")}
        return {"mAP": float(average_precision_score(labels[:, present], scores[:, present], average="macro"))}
