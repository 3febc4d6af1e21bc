"""Aggregation of a round's updates into the next global model: clipping, an aggregation rule, a server optimizer.

The choice travels as JSON inside an experiment's plan.
"""

from collections.abc import Sequence

from pydantic import Field

from openfl_audio.protocol.part import Part
from openfl_audio.protocol.rules import Mean, Rule
from openfl_audio.protocol.server_optimizers import ServerOptimizer


class Aggregation(Part):
    """Aggregation of a round's updates, in this order: clip each, combine them, step.

    With `max_share` a larger weight counts as much as makes it just that share; where there are fewer than 1 /
    max_share updates, all weigh the same.
    """

    rule: Rule = Field(
        default=Mean(),
        description="rule that combines the updates; without a server optimizer, the result is the next model",
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="bound on an update's distance from the global model: McMahan et al. 2017, arXiv 1710.06963",
    )
    server_optimizer: ServerOptimizer | None = Field(
        default=None, description="optimizer that steps from the global model towards what the rule made of the updates"
    )
    max_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="bound on one update's share of the weight of a round; a larger weight counts as just that",
    )

    def weights(self, clips: Sequence[int]) -> list[float]:
        """Return the weight of each update by the clips it was trained on, once `max_share` has been applied."""
        if self.max_share is None or not self.rule.weighted:
            return list(clips)
        # From the largest on: the first `capped` of them weigh `limit`, which is max_share of the sum that results.
        largest_first, rest = sorted(clips, reverse=True), sum(clips)
        for capped, largest in enumerate(largest_first):
            if capped * self.max_share >= 1:
                break
            limit = self.max_share * rest / (1 - capped * self.max_share)
            if largest <= limit:
                return [min(weight, limit) for weight in clips]
            rest -= largest
        return [float(largest_first[-1])] * len(clips)

    def clip_scales(self, norms: Sequence[float]) -> list[float]:
        """Return the factor by which each update is shortened, 1.0 for not at all: min(1, clip_norm / norm).

        A norm is the L2 norm of update - global model over all trained parameters together.
        """
        if self.clip_norm is None:
            return [1.0] * len(norms)
        return [min(1.0, self.clip_norm / norm) if norm > 0 else 1.0 for norm in norms]
