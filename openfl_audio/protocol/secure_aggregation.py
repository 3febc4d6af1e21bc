"""Settings of secure aggregation, as a plan has them, and what they bear: how many envoys may be lost, or collude."""

from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from openfl_audio.protocol.neighbours import Neighbours, least_neighbours
from openfl_audio.protocol.part import Part

# With fewer updates in a sum, the director and one envoy would know the others' update.
LEAST_UPDATES = 3
# Up to so many envoys each shares secrets with each other one; of more each draws some.
ALL_PAIRS = 50
# All keys of an attempt, which are sent to each envoy, have some 1.5 MB then.
MOST_ENVOYS = 1000
# One in so many envoys may be lost, and may collude, where each shares secrets with some others.
ONE_IN = 5


def threshold(envoys: int) -> int:
    """Return how many of `envoys` must be there at every stage: more than two thirds.

    Two sets of that size have more than a third of the envoys in common. As long as one of these is honest, and signs
    one list of survivors only, no two lists can be signed by so many.

    >>> [threshold(envoys) for envoys in (3, 4, 5, 8, 50)]
    [3, 3, 4, 6, 34]
    """
    return max(LEAST_UPDATES, 2 * envoys // 3 + 1)


def dropouts(envoys: int) -> int:
    """Return how many of `envoys` may be lost in a round.

    Where each shares secrets with some others, an attempt with so many lost at random fails once in 2^20 times. With
    more it may succeed, up to those that the threshold spares.

    >>> [dropouts(envoys) for envoys in (3, 4, 5, 8, 50, 60)]
    [0, 1, 1, 2, 16, 12]
    """
    return envoys - threshold(envoys) if envoys <= ALL_PAIRS else envoys // ONE_IN


def colluders(envoys: int) -> int:
    """Return how many of `envoys` may work together with a director that breaks the rules, and learn but a sum.

    It is fewer than would get two lists of survivors signed, and leaves two others at least in each sum. Where each
    shares secrets with some others, that fails in an attempt with a probability of 2^-40.

    >>> [colluders(envoys) for envoys in (3, 4, 5, 7, 8, 50, 60)]
    [1, 1, 2, 2, 3, 17, 12]
    """
    if envoys > ALL_PAIRS:
        return envoys // ONE_IN
    return min(2 * threshold(envoys) - envoys - 1, threshold(envoys) - 2)


def neighbours(envoys: int) -> Neighbours:
    """Return with how many others each of `envoys` shares its secrets, and how many of the shares give them back.

    >>> [tuple(neighbours(envoys)) for envoys in (5, 50, 60)]
    [(4, 4), (49, 34), (25, 14)]
    """
    if envoys <= ALL_PAIRS:
        return Neighbours(envoys - 1, threshold(envoys))
    return least_neighbours(envoys, colluders(envoys), dropouts(envoys), envoys - threshold(envoys))


def describe(envoys: int) -> str:
    """Return what secure aggregation of so many envoys bears, as a sentence."""
    borne = (
        f"secure aggregation takes {threshold(envoys)} of {envoys} envoys at every stage of a round: "
        f"{dropouts(envoys)} may be lost, and {colluders(envoys)} may collude with the director"
    )
    if envoys <= ALL_PAIRS:
        return borne
    drawn, shares = neighbours(envoys)
    return f"{borne}; each shares its secrets with {drawn} others, and {shares} shares give them back"


class SecureAggregation(Part):
    """The settings of secure aggregation: the director learns the sum of a round's updates, and none of them.

    A change of a value is clipped to its range, weighted, and rounded at random to an integer of `bits` bits.
    """

    bits: int = Field(default=20, ge=8, le=30, description="bits of an integer that a change of a value becomes")
    value_range: float = Field(
        default=1.0, gt=0, description="the most that a value may change in a round; larger changes count as that"
    )
    ranges: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="other ranges by the name of a tensor, or a pattern of names such as '*.running_var'",
    )
    largest_weight: int = Field(
        default=1000, ge=1, le=10**9, description="the most clips that an update weighs; more count as that"
    )
    stage_seconds: float = Field(
        default=60.0, gt=0, description="how long a stage waits for envoys once there are enough of them"
    )

    def range_of(self, tensor: str) -> float:
        """Return the range of the changes of a tensor: the first pattern that fits its name counts."""
        return next((each for pattern, each in self.ranges.items() if fnmatchcase(tensor, pattern)), self.value_range)

    def is_default(self, setting: str) -> bool:
        """Tell whether a setting is as if nobody had given it."""
        return bool(getattr(self, setting) == type(self).model_fields[setting].get_default())

    def check_number(self, envoys: int) -> None:
        """Raise ValueError if updates of so many `envoys` cannot be summed in secret."""
        if envoys < LEAST_UPDATES:
            raise ValueError(f"secure aggregation takes {LEAST_UPDATES} envoys that train, and there are {envoys}")
        if envoys > MOST_ENVOYS:
            raise ValueError(f"secure aggregation takes at most {MOST_ENVOYS} envoys that train, and not {envoys}")
        if envoys * (2 ** (self.bits - 1) - 1) >= 2**31:
            raise ValueError(f"a sum of {envoys} integers of {self.bits} bits does not fit into 32 bits: give fewer")
