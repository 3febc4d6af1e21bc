"""mAP as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score

_DESCRIPTION = """The mean over classes of average precision, AP = sum over thresholds of (recall step) * precision,
that is macro-averaged, as in the FSD50K paper (Fonseca et al., arXiv 2010.00475). Higher is better, 1 is perfect.
Classes without a positive clip have no AP and are left out; clips with equal scores are one threshold."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    mAP: float in [0, 1], NaN where no class has a positive clip.
        No mean of parts: over several nodes it needs the scores of all clips in one place.
"""


class MeanAveragePrecision(evaluate.Metric):
    """Metric of the mean over classes of average precision; see its description."""

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
        if not present.any():
            return {"mAP": float("nan")}
        return {"mAP": float(average_precision_score(labels[:, present], scores[:, present], average="macro"))}
