#!/usr/bin/env python3
"""Error of the mean with privacy of sites, by a trusted director and by secure aggregation, at the same epsilon.

    python benchmarks/privacy_of_sites.py
    python benchmarks/privacy_of_sites.py --values 10000

Changes of all sites are drawn at random, most of them longer than the bound, and go through one round of each: the
clipping and the noise of the director (`SiteRound`), and the words of each site, their sum, and what the director makes
of it (`NoisySum`). The error is the standard deviation, over all values, of what the model changes by less the mean of
the clipped changes, in units of the bound `clip`. Noise comes from the operating system.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.privacy.accounting import privacy_cost
from openfl_audio.privacy.fixed_point import WORD, Rounding
from openfl_audio.privacy.noise import Noise
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.privacy.site_level import SiteRound
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.plan import TRAIN, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.rules import Mean
from openfl_audio.protocol.secure_aggregation import SecureAggregation, colluders

SITES = (3, 5, 10, 20, 50)
CLIP, NOISE_MULTIPLIER, DELTA, ROUNDS = 1.0, 5.0, 1e-5, 50
NAME = "weight"


def plan_of(sites: int, colluding: int) -> ExperimentPlan:
    """Return the plan of an experiment of so many sites, of which some are assumed to collude."""
    return ExperimentPlan(
        name="privacy-of-sites",
        federation_uuid="",
        rounds=ROUNDS,
        tasks=[Task(name=TRAIN, function_name="train", task_type="train")],
        best=BestModel(metric="accuracy", direction="max"),
        envoys=[f"site-{number}" for number in range(sites)],
        aggregation=Aggregation(rule=Mean(weighted=False)),
        privacy=SiteLevel(noise_multiplier=NOISE_MULTIPLIER, clip=CLIP, delta=DELTA, colluders=colluding),
        secure_aggregation=SecureAggregation(),
    )


def measure(sites: int, values: int) -> dict[str, Any]:
    """Return the errors for so many sites, and what they cost; changes have so many values."""
    generator = np.random.default_rng(sites)
    changes = generator.normal(size=(sites, values))
    changes *= generator.uniform(0.5, 4, (sites, 1)) * CLIP / np.sqrt(values)
    norms = np.linalg.norm(changes, axis=1)
    mean = (changes * np.minimum(1, CLIP / norms)[:, None]).mean(axis=0)
    assumed = colluders(sites)
    most, none = plan_of(sites, assumed), plan_of(sites, 0)
    cost = privacy_cost(most.privacy, ROUNDS, most.honest_survivors)
    return {
        "sites": sites,
        "epsilon": round(cost, 1),
        "trusted": _shown(_trusted(changes, norms) - mean),
        "secret": _shown(_secret(most, changes, norms) - mean),
        "colluders": assumed,
        "secret_without_colluders": _shown(_secret(none, changes, norms) - mean),
    }


def _trusted(changes: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return by how much the model changes where the director clips and adds noise."""
    sites, values = changes.shape
    level = SiteLevel(noise_multiplier=NOISE_MULTIPLIER, clip=CLIP, delta=DELTA)
    site_round = SiteRound(level, sites, CLIP, {NAME: values}, Noise())
    total, model = np.zeros(values), np.zeros(values)
    for change, norm in zip(changes, norms, strict=True):
        site_round.add(total, model, change, site_round.scales({NAME: float(norm)})[NAME])
    return site_round.finish(total, NAME, 0, model)


def _secret(plan: ExperimentPlan, changes: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return by how much the model changes where sites clip and add noise, and the director knows the sum."""
    values = changes.shape[1]
    noisy = NoisySum(plan, {NAME: values})
    total = np.zeros(noisy.length, WORD)
    for number, (change, norm) in enumerate(zip(changes, norms, strict=True)):
        rounding = Rounding.of(0, 0, f"site-{number}")
        total += noisy.encode(partial(_part, change), float(norm), rounding, Noise())
    return noisy.decode(total, NAME, 0, values)


def _part(change: np.ndarray, _: str, first: int, last: int) -> np.ndarray:
    return change[first:last]


def _shown(error: np.ndarray) -> float:
    return float(f"{error.std() / CLIP:.3g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=whole_number, default=100_000, help="of a model; %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    add_save(parser)
    options = parser.parse_args(arguments)
    results = []
    for sites in SITES:
        results.append(measure(sites, options.values))
        line = "{sites:>3} sites, epsilon {epsilon}: {trusted:.3g} trusted, {secret:.3g} secret"
        print(json.dumps(results[-1]) if options.json else line.format(**results[-1]), flush=True)
    save(options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
