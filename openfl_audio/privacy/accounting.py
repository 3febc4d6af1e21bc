"""Cost of repeated releases with Gaussian noise: epsilon, for a delta and between data that differ by one unit.

Adjacency is to add or to remove one unit: a record, all clips of a speaker, or a site. A release is private to
(epsilon, delta) if no set of results is more likely by a factor above exp(epsilon), save for a probability of delta,
with the unit than without it. The computation is that of `dp-accounting`, which does not import torch:

    rdp    Rényi differential privacy (Mironov, arXiv 1702.07476; of the sampled mechanism: Mironov et al., arXiv
           1908.10530). Milliseconds, and some 5 to 15 % above the true cost. Budgets are kept by it.
    pld    privacy loss distributions, by Fourier transforms (Koskela et al., arXiv 1906.03049; Gopi et al., arXiv
           2106.02848, call theirs PRV). Seconds, and an upper bound that is all but exact.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.clipping import check_positive
from openfl_audio.privacy.discrete_gaussian import DEVIATION
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.privacy import Level
from openfl_audio.protocol.secure_aggregation import threshold

Accountant = Literal["rdp", "pld"]
ADJACENCY = "add or remove one unit"
# A site that takes part in a secure sum adds its noise, and is seen to be there: what it trained with may be missing.
ADJACENCY_OF_SUMS = "add or remove all recordings of a site that takes part"
# No model has more values.
MOST_VALUES = 2**40


@dataclass(frozen=True)
class Release:
    """Gaussian noise on a sum over a Poisson sample of units, a number of times.

    Attributes:
        noise_multiplier: standard deviation of the noise over the largest norm of a unit's part in the sum.
        probability: that of each unit to be in a sample, drawn secretly; 1 where a sample is all, or is not secret.
        steps: how often.
    """

    noise_multiplier: float
    probability: float
    steps: int

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no release can have."""
        check_positive(noise_multiplier=self.noise_multiplier, probability=self.probability)
        if self.probability > 1:
            raise ValueError(f"probability is {self.probability}: it should be at most 1")
        if self.steps < 0 or self.steps != int(self.steps):
            raise ValueError(f"steps is {self.steps}: it should be a whole number, 0 or more")


def epsilon(releases: Iterable[Release], delta: float, accountant: Accountant = "rdp") -> float:
    """Return what all releases together cost, for units that take part in all of them; 0 for none.

    Raises PrivacyError if dp-accounting is not installed, and ValueError for a delta that is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it should be between 0 and 1, and far below 1 over the number of units")
    steps: Counter[tuple[float, float]] = Counter()
    for release in releases:
        steps[release.noise_multiplier, release.probability] += release.steps
    steps = +steps
    if not steps:
        return 0.0
    library = _library()
    neighbours = library.NeighboringRelation.ADD_OR_REMOVE_ONE
    kinds = {"rdp": library.rdp.RdpAccountant, "pld": library.pld.PLDAccountant}
    total = kinds[accountant](neighboring_relation=neighbours)
    for (noise_multiplier, probability), count in steps.items():
        event = library.GaussianDpEvent(noise_multiplier)
        total.compose(event if probability == 1 else library.PoissonSampledDpEvent(probability, event), count)
    return float(total.get_epsilon(delta))


@cache
def privacy_cost(level: Level, rounds: int, honest_survivors: int | None = None) -> float:
    """Return the epsilon of so many rounds of training at a site, at the plan's delta, by RDP.

    With secure aggregation the noise of sites is that of so many `honest_survivors`, at least.
    """
    multiplier = level.noise_multiplier
    if honest_survivors is not None:
        multiplier = summed_multiplier(multiplier, honest_survivors)
    return epsilon([Release(multiplier, level.probability, rounds * level.steps)], level.delta)


def summed_multiplier(
    noise_multiplier: float, sites: int, deviation: float = DEVIATION, values: int = MOST_VALUES
) -> float:
    """Return the noise multiplier of a Gaussian release that costs as much as one with discrete noise of `sites`.

    The sum of the noise of all sites, each of which adds a discrete Gaussian of this `deviation` to each of so many
    integer `values`, has `noise_multiplier` times the largest norm of a site's part. It is private to
    1/2 e^2 of concentrated differential privacy (Kairouz, Liu & Steinke, arXiv 2102.06387, theorem 1), with

        e = 1 / noise_multiplier + t * sqrt(values),    t = 10 * sum over k < sites of exp(-2 pi^2 s^2 k / (k + 1))

    and a Gaussian release is with e = 1 / multiplier. With the deviation s of `discrete_gaussian` t is below the
    smallest floating number.
    """
    exponents = (-2 * (math.pi * deviation) ** 2 * k / (k + 1) for k in range(1, sites))
    distance = 10 * math.fsum(map(math.exp, exponents))
    return 1 / (1 / noise_multiplier + distance * math.sqrt(values))


def privacy_of(plan: ExperimentPlan, releases: Mapping[str, int]) -> dict[str, Any] | None:
    """Return what an experiment has cost so far, as `messages.PrivacySpent` has it; None for one without privacy.

    `releases` has the number of rounds in which each envoy has sent what it trained.
    """
    privacy = plan.privacy
    if privacy is None:
        return None
    spent = {envoy: privacy_cost(privacy, rounds, plan.honest_survivors) for envoy, rounds in releases.items()}
    adjacency = ADJACENCY if plan.honest_survivors is None else ADJACENCY_OF_SUMS
    about = {"unit": privacy.unit, "delta": privacy.delta, "adjacency": adjacency, "trust": trust_of(plan)}
    return about | {"epsilon": spent}


def trust_of(plan: ExperimentPlan) -> str:
    """Return whom a site trusts that an epsilon is as it is told."""
    honest = plan.honest_survivors
    if honest is None:
        return _trust_without_sums(plan.privacy.unit if plan.privacy else "record")
    least = threshold(len({*(plan.envoys or ())}))
    return f"no director, but {honest} honest sites of the {least} or more in a round, which add the noise together"


def _trust_without_sums(unit: str) -> str:
    return "the director, which adds the noise" if unit == "site" else "nobody: each site adds its noise"


def explained(spent: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of privacy (`messages.PrivacySpent`), with what records of earlier builds leave out.

    Before `adjacency` and `trust` were written down, no noise was added to secret sums.
    """
    told = {name: value for name, value in spent.items() if value is not None}
    return {"adjacency": ADJACENCY, "trust": _trust_without_sums(spent["unit"])} | told


def check_can_account() -> None:
    """Raise PrivacyError if dp-accounting is not installed."""
    _library()


def noise_for(budget: float, delta: float, probability: float, steps: int) -> float:
    """Return the least noise multiplier, to 0.1 %, with which `steps` releases cost at most `budget`, by RDP.

    Raises PrivacyError where a multiplier of a million does not do.
    """
    check_positive(budget=budget)

    def cost(multiplier: float) -> float:
        return epsilon([Release(multiplier, probability, steps)], delta)

    low, high = 0.1, 1.0
    while cost(high) > budget:
        low, high = high, 2 * high
        if high > 1e6:
            raise PrivacyError(
                f"no noise keeps {steps} steps at a delta of {delta:g} within epsilon {budget:g}: "
                "take fewer steps, a larger delta or a larger budget"
            )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > budget else (low, middle)
    return high


class _Library:
    """The parts of dp-accounting that are used here."""

    def __init__(self) -> None:
        import dp_accounting
        from dp_accounting import pld, rdp

        self.rdp, self.pld = rdp, pld
        self.NeighboringRelation = dp_accounting.NeighboringRelation
        self.GaussianDpEvent = dp_accounting.GaussianDpEvent
        self.PoissonSampledDpEvent = dp_accounting.PoissonSampledDpEvent
        # It says of every order of Rényi that it leaves out, which makes the bound no less true.
        logging.getLogger("absl").setLevel(logging.ERROR)


@cache
def _library() -> _Library:
    try:
        return _Library()
    except ImportError as error:
        raise PrivacyError(
            f"privacy cannot be accounted for, as {error.name} is not installed: pip install 'openfl-audio[privacy]'"
        ) from None
