"""lwlrap as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import numpy as np
from sklearn.metrics import label_ranking_average_precision_score

from openfl_audio.training.clip_metric import ClipMetric


class Lwlrap(ClipMetric):
    """Label-weighted label-ranking average precision.

    It is the mean over all positive labels of the precision among the classes that their clip ranks at least as high,
    as in DCASE 2019 task 2 (Fonseca et al., arXiv 1906.02975). Higher is better, 1 is perfect. Clips without a label
    have no part in it; classes with equal scores share the lowest rank.
    """

    returns = (
        "lwlrap: float in [0, 1], NaN where no label is 1. Over several nodes, the mean weighted by positive "
        "labels is the lwlrap over all clips."
    )

    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        labelled = labels.any(axis=1)
        if not labelled.any():
            return {"lwlrap": float("nan")}
        scores, labels = scores[labelled], labels[labelled]
        # A clip's weight is its number of labels: every label counts the same.
        value = label_ranking_average_precision_score(labels, scores, sample_weight=labels.sum(axis=1))
        return {"lwlrap": float(value)}
