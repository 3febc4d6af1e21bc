"""Aggregation of a round's updates into the next global model: clipping, an aggregation rule, a server optimizer.

The choice travels as JSON inside an experiment's plan.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from openfl_audio.protocol.low_rank import LoraResidual, LoraRule, LoraSvd, is_given
from openfl_audio.protocol.part import Part
from openfl_audio.protocol.rules import Mean, Rule
from openfl_audio.protocol.server_optimizers import ServerOptimizer


class Aggregation(Part):
    """Aggregation of a round's updates, in this order: clip each, combine them, step.

    With `max_share` a larger weight counts as much as makes it just that share; where there are fewer than 1 /
    max_share updates, all weigh the same.
    """

    rule: Annotated[Rule | LoraRule, Field(discriminator="rule")] = Field(
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

    @model_validator(mode="after")
    def check_optimizer(self) -> "Aggregation":
        """Raise ValueError for a server optimizer with a rule that makes new factors in each round."""
        if self.product_rule is not None and self.server_optimizer is not None:
            raise ValueError(
                f"rule '{self.rule.rule}' makes new factors in each round, towards which no server optimizer can step: "
                "take the rule 'mean', or no server_optimizer"
            )
        return self

    @property
    def product_rule(self) -> LoraResidual | LoraSvd | None:
        """Return the rule, where it combines the products of adapters."""
        return self.rule if isinstance(self.rule, LoraResidual | LoraSvd) else None

    @property
    def whole_tensors(self) -> bool:
        """Tell whether the aggregation needs all of a tensor at once."""
        return self.rule.whole_tensors or (self.server_optimizer is not None and self.server_optimizer.whole_tensors)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError unless the rule suits a model that transmits tensors of these `names`."""
        names = list(names)
        if self.product_rule is not None:
            self.product_rule.check_names(names)
        if not isinstance(self.rule, LoraResidual) and any(map(is_given, names)):
            raise ValueError(
                f"the model's adapters have residuals, which rule '{self.rule.rule}' leaves at zero: take "
                "'lora_residual', or adapters without"
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
