"""Masked prediction as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """How well the clusters of frames are predicted, as in HuBERT's pretraining (Hsu et al., arXiv
2106.07447): where the model did not see the frame, and where it did. Higher is better, 1 is perfect. The accuracy of
the most frequent cluster is that of a model that always says it; one that has learned is clearly above it."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: predicted clusters, integers (frames,)
    references: true clusters, integers (frames,)
    masked: whether the model did not see the frame (frames,)
    clusters: how many there are
Returns:
    masked_accuracy: float in [0, 1]. Over several nodes, the mean weighted by masked frames is that over all frames.
    unmasked_accuracy: float in [0, 1], NaN where every frame is masked
    most_frequent_accuracy: float in [0, 1], of the most frequent cluster at masked frames
    cluster_usage: float in [0, 1], the share of clusters that are predicted at some masked frame
Raises:
    ValueError: no frame is masked.
"""


class MaskedPrediction(evaluate.Metric):
    """Metric of how well masked frames' clusters are predicted; see its description."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int32"),
                    "references": datasets.Value("int32"),
                    "masked": datasets.Value("bool"),
                }
            ),
        )

    def _compute(
        self, predictions: list[int], references: list[int], masked: list[bool], clusters: int
    ) -> dict[str, float]:
        predicted, true, hidden = np.asarray(predictions), np.asarray(references), np.asarray(masked, dtype=bool)
        if not hidden.any():
            raise ValueError(f"masked accuracy of {len(hidden)} frames: none of them is masked")
        correct = predicted == true
        return {
            "masked_accuracy": float(correct[hidden].mean()),
            "unmasked_accuracy": float(correct[~hidden].mean()) if not hidden.all() else float("nan"),
            "most_frequent_accuracy": float(np.bincount(true[hidden]).max() / hidden.sum()),
            "cluster_usage": len(np.unique(predicted[hidden])) / clusters,
        }
