"""Aggregation of secret sums, or with noise, into the next global model, in memory. The director does so with files."""

from typing import Any

import numpy as np

from openfl_audio.privacy.fixed_point import WORD, decode
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.privacy.site_level import SiteRound
from openfl_audio.privacy.update import Words, mean_share, words_header
from openfl_audio.protocol.aggregate import Aggregator, check_tensor
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Tensors, describe
from openfl_audio.protocol.values import distance


class SumAggregator(Aggregator):
    """The next global model from the sum of updates' words.

    Integer tensors stay as they are, and with privacy of sites all that is not trained.
    """

    def __init__(self, model: Tensors, plan: ExperimentPlan, *state: Any) -> None:
        """Begin with `model`; `state` are the server optimizer's moments and the number of aggregations so far."""
        super().__init__(model, plan.aggregation, plan.untrained, *state)
        self._plan, self._settings = plan, plan.secure_aggregation or SecureAggregation()
        self._header = words_header(plan, describe(self.model, {}))
        self._total, self._weight = np.zeros(self._header.data_bytes // WORD.itemsize, WORD), 0

    def begin(self, round_number: int) -> None:
        """Begin a round."""
        is_noisy = self._plan.honest_survivors is not None
        self._noisy = NoisySum.of(self._plan, describe(self.model, {}), round_number) if is_noisy else None

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
        if self._noisy is not None:
            if name not in self._parameters:
                return current
            rows = slice(*self._noisy.rows_of(name, 0, len(current)))
            return current + self._noisy.decode(self._total[rows], name, 0, len(current))
        first = self._header.entries[name].start // WORD.itemsize
        share = mean_share(self.aggregation, self._settings, self._weight)
        total = self._total[first : first + len(current)]
        return current + decode(total, self._settings.range_of(name), share, self._settings.bits)


class SiteAggregator(Aggregator):
    """The next global model from clipped updates with noise: see `site_level`. What is not trained stays as it is."""

    def begin(self, site: SiteRound) -> None:
        """Begin a round with its clipping and noise."""
        self._site = site
        self._totals = {name: np.zeros(self.model[name].size) for name in self.trained}

    @property
    def trained(self) -> list[str]:
        """Return the names of the tensors that change."""
        return [name for name in self._sent if name in self._parameters]

    def add(self, update: Tensors, clips: int, error_prefix: str) -> None:
        """Take in the update of a client; see `Aggregator.add`."""
        changes = {name: (self.model[name].reshape(-1), update[name].reshape(-1)) for name in self._sent}
        for name, (current, values) in changes.items():
            check_tensor(name, values, current, error_prefix)
        scales = self._site.scales({name: distance([changes[name]]) for name in self._totals})
        for name, total in self._totals.items():
            self._site.add(total, *changes[name], scales[name])

    def _combined(self, name: str, current: np.ndarray) -> np.ndarray:
        return self._site.finish(self._totals[name], name, 0, current) if name in self._totals else current
