"""Accuracy as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "The share of clips whose label was predicted. Higher is better, 1 is perfect."
_KWARGS_DESCRIPTION = """
Args:
    predictions: predicted labels, integers (clips,)
    references: true labels, integers (clips,)
Returns:
    accuracy: float in [0, 1]. Over several nodes, the mean weighted by clips is the accuracy over all clips.
"""


class Accuracy(evaluate.Metric):
    """Metric of the share of clips whose label was predicted."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
