"""The mean d' of the classes as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<this file>)`."""

from statistics import NormalDist

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score

_DESCRIPTION = """The mean over classes of d' = sqrt(2) * Phi^-1(AUC), with the area under the ROC curve of each class
and the normal distribution function Phi. It is larger than d_prime, the d' of the mean area, where classes differ: the
FSD50K paper's is that one. Higher is better, 0 is chance. Classes without a positive or without a negative clip are
left out. An area of exactly 1 (or 0) counts as if half a pair of clips were in the other order."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    d_prime_mean: float, NaN where no class has both positive and negative clips.
        No mean of parts: over several nodes it needs the scores of all clips in one place.
"""


class DPrimeMean(evaluate.Metric):
    """Metric of how far positives and negatives of a class are apart, averaged over classes; see its description."""

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
        values = []
        for column, truth in zip(np.asarray(predictions).T, np.asarray(references).T, strict=True):
            positives = int(truth.sum())
            pairs = positives * (len(truth) - positives)
            if pairs:
                # A tie is half a pair.
                area = float(np.clip(roc_auc_score(truth, column), 0.5 / pairs, 1 - 0.5 / pairs))
                values.append(2**0.5 * NormalDist().inv_cdf(area))
        return {"d_prime_mean": float(np.mean(values)) if values else float("nan")}
