"""Base of metrics of the scores and true labels of clips, as modules of `evaluate`."""

import inspect
from abc import ABC, abstractmethod
from typing import ClassVar

import datasets
import evaluate
import numpy as np

_INPUTS = """
Args:
    predictions: scores, any real numbers (clips, classes)
    references: true labels, 0 or 1 (clips, classes)
Returns:
    """


class ClipMetric(evaluate.Metric, ABC):
    """Base of a metric in a file of its own, which `evaluate.load(<its path>)` finds without a hub.

    The docstring of a subclass is its description, and `returns` describes what `compute` returns.
    """

    # `evaluate` takes the first class of a file that is not abstract, and so leaves this one out.
    returns: ClassVar[str]

    @abstractmethod
    def score(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the metric's values by name, from scores and labels (clips, classes)."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=inspect.cleandoc(type(self).__doc__ or ""),
            citation="",
            inputs_description=_INPUTS + self.returns,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return self.score(np.asarray(predictions), np.asarray(references))
