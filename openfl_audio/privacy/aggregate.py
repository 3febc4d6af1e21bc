"""Aggregation of secret sums into the next global model, in memory. The director does the same with files."""

from typing import Any

import numpy as np

from openfl_audio.privacy.fixed_point import WORD, decode
from openfl_audio.privacy.update import Words, mean_share, words_header
from openfl_audio.protocol.aggregate import Aggregator
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Tensors, describe


class SumAggregator(Aggregator):
    """The next global model from the sum of updates' words. Integer tensors stay as they are."""

    def __init__(self, model: Tensors, plan: ExperimentPlan, *state: Any) -> None:
        """Begin with `model`; `state` are the server optimizer's moments and the number of aggregations so far."""
        super().__init__(model, plan.aggregation, plan.untrained, *state)
        self._settings = plan.secure_aggregation or SecureAggregation()
        self._header = words_header(describe(self.model, {}))
        self._total, self._weight = np.zeros(self._header.data_bytes // WORD.itemsize, WORD), 0

    def add_words(self, words: Words) -> None:
        """Add the words of an update to the sum."""
        self._total += words.values
        self._weight += words.weight

    def finish_round(self) -> dict[str, float]:
        """Make the next global model, in place, from what was added; see `Aggregator.finish_round`."""
        told = super().finish_round()
        self._total[:], self._weight = 0, 0
        return told

    def _combined(self, name: str, current: np.ndarray) -> np.ndarray:
        first = self._header.entries[name].start // WORD.itemsize
        share = mean_share(self.aggregation, self._settings, self._weight)
        total = self._total[first : first + len(current)]
        return current + decode(total, self._settings.range_of(name), share, self._settings.bits)
