"""lwlrap as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import label_ranking_average_precision_score

_DESCRIPTION = """Label-weighted label-ranking average precision: the mean over all positive labels of the precision
among the classes that their clip ranks at least as high, as in DCASE 2019 task 2 (Fonseca et al., arXiv 1906.02975).
Higher is better, 1 is perfect. Clips without a label have no part in it; classes with equal scores share the lowest
rank."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    lwlrap: float in [0, 1], NaN where no label is 1.
        Over several nodes, the mean weighted by positive labels is the lwlrap over all clips.
"""


class Lwlrap(evaluate.Metric):
    """Metric of how high clips rank their labels; see its description."""

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
        labelled = labels.any(axis=1)
        if not labelled.any():
            return {"lwlrap": float("nan")}
        scores, labels = scores[labelled], labels[labelled]
        # A clip's weight is its number of labels: every label counts the same.
        value = label_ranking_average_precision_score(labels, scores, sample_weight=labels.sum(axis=1))
        return {"lwlrap": float(value)}
