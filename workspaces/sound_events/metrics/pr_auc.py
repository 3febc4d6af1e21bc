"""PR-AUC as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import auc, precision_recall_curve

_DESCRIPTION = """The area under the precision-recall curve of all decisions (clip, class) together, that is
micro-averaged, by the trapezoidal rule: what Green & Plumbley (arXiv 2105.08550) choose their models by. Higher is
better, 1 is perfect, and chance is the share of positive labels. Scores of different classes are compared with each
other: see mean_average_precision for the mean over classes."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    pr_auc: float in [0, 1], NaN where no label is 1.
        No mean of parts: over several nodes it needs the scores of all clips in one place.
"""


class PrAuc(evaluate.Metric):
    """Metric of the area under the precision-recall curve of all decisions; see its description."""

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
        labels = np.ravel(references)
        if not labels.any():
            return {"pr_auc": float("nan")}
        precision, recall, _ = precision_recall_curve(labels, np.ravel(predictions))
        return {"pr_auc": float(auc(recall, precision))}
