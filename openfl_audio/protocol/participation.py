"""Participation: who takes part in a round, and when a round closes."""

import math
import random
from collections.abc import Iterable

from pydantic import Field, model_validator

from openfl_audio.protocol.part import Part


class Participation(Part):
    """The participants of a round, and the moment when the round closes.

    By default every member trains in every round, and a round waits for all of them.
    """

    fraction: float | None = Field(
        default=None, gt=0, le=1, description="share of the members that train in a round, drawn anew for each"
    )
    count: int | None = Field(
        default=None, ge=1, description="number of members that train in a round, in place of a fraction"
    )
    min_trainers: int = Field(
        default=1, ge=1, description="so many members train in a round at least, where the fraction of them is smaller"
    )
    min_members: int = Field(
        default=1,
        ge=1,
        description=(
            "number of members that train for which an experiment waits before its first round; those of a corpus "
            "become members as they come, and envoys that are named are waited for in any case"
        ),
    )
    seed: int = Field(default=0, description="seed of the draws")
    evaluators: list[str] = Field(
        default=[],
        description=(
            "members that validate the global model and do not train; the others then do not validate, so that all "
            "validations are on the same clips"
        ),
    )
    validate_every: int = Field(
        default=1, ge=1, description="validate in rounds 0, validate_every, ... and in the last one"
    )
    deadline_seconds: float | None = Field(
        default=None,
        gt=0,
        description="seconds that a round waits for its participants; without a deadline it waits for all of them",
    )
    quorum: int = Field(
        default=1,
        ge=1,
        description="number of updates that must count when a round closes at its deadline; evaluators may be fewer",
    )

    @model_validator(mode="after")
    def check_that_choices_agree(self) -> "Participation":
        """Raise ValueError if some of the choices contradict each other."""
        if self.fraction is not None and self.count is not None:
            raise ValueError(
                f"fraction {self.fraction} and count {self.count} both say how many train: give one of them"
            )
        if self.count is not None and self.min_trainers > 1:
            raise ValueError(
                f"min_trainers {self.min_trainers} has no effect with count {self.count}: give one of them"
            )
        if self.count is not None and self.count < self.quorum:
            raise ValueError(f"count {self.count} asks fewer than the quorum of {self.quorum}")
        if self.quorum > 1 and self.deadline_seconds is None:
            raise ValueError(
                f"quorum {self.quorum} needs deadline_seconds: without a deadline a round waits for all participants"
            )
        return self

    def trainers(self, round_number: int, members: Iterable[str]) -> list[str]:
        """Return the sorted names of those `members` that train in this round.

        The result is a function of seed, round and members alone, so that a director that starts again asks the same
        ones. A fraction is rounded up: a tenth of 21 members is 3, of 20 it is 2, of 4 it is 1.
        """
        evaluators = set(self.evaluators)
        # A dict keeps the order of names, which mostly come sorted and then take no time to sort; a set does not.
        names = sorted(dict.fromkeys(name for name in members if name not in evaluators))
        how_many = self._how_many(len(names))
        if how_many == len(names):
            return names
        return sorted(random.Random(f"{self.seed}:{round_number}").sample(names, how_many))

    def lacking(self, members: Iterable[str]) -> int:
        """Return how many more members that train an experiment of these `members` waits for."""
        return max(0, self.min_members - len({*members} - {*self.evaluators}))

    def validates(self, round_number: int, last_round: int) -> bool:
        """Tell whether a round validates the model it begins with."""
        return round_number % self.validate_every == 0 or round_number == last_round

    def is_complete(self, participants: int, answered: int, is_quorum: bool, seconds_open: float) -> bool:
        """Tell whether a round closes now.

        It closes when all `participants` have `answered`, in one way or another, or when the deadline is over and the
        answers that count are a quorum.
        """
        if answered >= participants:
            return True
        return self.deadline_seconds is not None and seconds_open >= self.deadline_seconds and is_quorum

    def _how_many(self, members: int) -> int:
        if self.count is not None:
            return min(self.count, members)
        if self.fraction is not None:
            # Rounded first, as 0.07 * 100 is 7.000000000000001. The smallest fraction of members is one member.
            return min(max(math.ceil(round(self.fraction * members, 9)), self.min_trainers), members)
        return members
