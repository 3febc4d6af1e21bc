#!/usr/bin/env python3
"""Audit of DP-SGD: a lower bound of epsilon from guesses at who was trained with, beside the accountant's upper one.

    python benchmarks/privacy_audit.py                        # the step as it is, and three that are broken
    python benchmarks/privacy_audit.py --variants shipped --runs 100

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", arXiv 2305.08846. Of 35 clips, the canaries,
each is in the training data of a run with probability 1/2. The head of the small keyword spotter, on its frozen
encoder, is trained for two steps of `PrivateSteps` with those that are. An auditor who sees every noisy gradient and
knows all clips guesses who was there. Several runs are as good as one with more canaries, since each draws and adds
noise anew.

Guesses are made for the canaries of which the auditor is surest, a share that is fixed before. If the steps are private
to (epsilon, delta), no more guesses are right than theorem 5.2 of the paper allows, save with a probability of 5 %; the
bound is the largest epsilon that what was guessed rules out. Broken steps are found where it is above the accountant's:

    shipped        the step as it is
    noise halved   half the noise that is accounted for
    clip off       gradients as they come
    no noise       a millionth of the noise
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.privacy.noise import Noise
from openfl_audio.training.private_steps import PrivateSettings, PrivateSteps
from workspaces.keyword_spotting.whisper import create_whisper

# As many as Speech Commands has words: a canary of each, so that their gradients point different ways.
CANARIES, PER_PASS = 35, 7
STEPS, RATE, CLIP, NOISE_MULTIPLIER, DELTA = 2, 0.05, 0.5, 2.8, 1e-5
GUESSED, CONFIDENCE = 0.03, 0.95
SETTINGS = PrivateSettings(clip=CLIP, noise_multiplier=NOISE_MULTIPLIER, probability=1.0)


class Unclipped(PrivateSteps):
    """Steps that take gradients as they come."""

    def _clip(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        return rows


# The steps that are audited, and the share of their noise that is really added.
VARIANTS: dict[str, tuple[type[PrivateSteps], float]] = {
    "shipped": (PrivateSteps, 1.0),
    "noise halved": (PrivateSteps, 0.5),
    "clip off": (Unclipped, 1.0),
    "no noise": (PrivateSteps, 1e-6),
}


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return how likely so many `right` guesses are at most if training is private to (epsilon, delta).

    Theorem 5.2 of arXiv 2305.08846, as its appendix D computes it: with W of the binomial distribution of `guesses`
    tries that succeed with probability e^epsilon / (1 + e^epsilon),

        P[W >= right] + 2 * canaries * delta * max over i of P[right > W >= right - i] / i
    """
    accuracy = 1 / (1 + np.exp(-epsilon))
    fewer = np.arange(1, right + 1)
    among = np.cumsum(binom.pmf(right - fewer, guesses, accuracy)) / fewer
    return min(1.0, float(binom.sf(right - 1, guesses, accuracy) + 2 * canaries * delta * among.max(initial=0)))


def epsilon_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the largest epsilon, to 0.001 and up to 50, that the guesses rule out with this confidence; 0 for none."""
    low, high = 0.0, 50.0
    if p_value(canaries, guesses, right, low, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        ruled_out = p_value(canaries, guesses, right, middle, delta) <= 1 - confidence
        low, high = (middle, high) if ruled_out else (low, middle)
    return low


def outputs_of_canaries() -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the head that is trained, and what the encoder makes of the canaries: noise of several colours."""
    model = create_whisper(
        config="whisper_small.json", labels=[str(i) for i in range(CANARIES)], form="short", frozen=True
    )
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(CANARIES, 16_000)).cumsum(axis=1)
    waveforms = [0.1 * (each / np.abs(each).max()).astype(np.float32) for each in noise]
    with torch.no_grad():
        outputs = model.encode(model.make_inputs(waveforms))
    for module in model.head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.head.train(), outputs


def scores_of_run(
    head: torch.nn.Module, outputs: torch.Tensor, variant: str, included: np.ndarray, noise: Noise
) -> np.ndarray:
    """Train with the canaries that are `included`, and return how much speaks for each to have been, (canaries,).

    It is the mean of the posterior, for a normal prior, of what each canary contributed: with G a step's clipped
    gradients of all canaries, K = G G', s the sum that was released and z the noise,

        (4 I + sum K / z^2)^-1 sum (G s - K 1/2) / z^2
    """
    kind, share = VARIANTS[variant]
    released = PrivateSettings(clip=CLIP, noise_multiplier=share * NOISE_MULTIPLIER, probability=1.0)
    audited = kind(head, released, CANARIES, noise, PER_PASS)
    known = PrivateSteps(head, SETTINGS, CANARIES, noise, PER_PASS)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE)
    everybody = [[canary] for canary in range(CANARIES)]

    def losses(clips: Sequence[int]) -> torch.Tensor:
        return F.cross_entropy(head(outputs[list(clips)]), torch.tensor(clips), reduction="none")

    precision, evidence = 4 * torch.eye(CANARIES), torch.zeros(CANARIES)
    for _ in range(STEPS):
        gradients = torch.cat([row.flatten(1) for row in known.clipped_gradients(everybody, losses).values()], 1) / CLIP
        audited.make_gradients([everybody[canary] for canary in np.flatnonzero(included)], losses)
        released_sum = (
            CANARIES / CLIP * torch.cat([each.grad.flatten() for each in head.parameters() if each.grad is not None])
        )
        overlap = gradients @ gradients.T
        precision += overlap / NOISE_MULTIPLIER**2
        evidence += (gradients @ released_sum - overlap.sum(1) / 2) / NOISE_MULTIPLIER**2
        optimizer.step()
    return torch.linalg.solve(precision, evidence).numpy()


def audit(variant: str, runs: int, noise: Noise, seed: int = 0) -> dict[str, Any]:
    """Return the bound of a variant from so many `runs`, and what it stands on; `seed` draws who is included."""
    head, outputs = outputs_of_canaries()
    first = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    included = np.random.default_rng(seed).integers(0, 2, size=(runs, CANARIES))
    scores = np.empty(included.shape)
    for run in range(runs):
        head.load_state_dict(first)
        scores[run] = scores_of_run(head, outputs, variant, included[run], noise)
    order, each_side = np.argsort(scores, axis=None), max(1, int(scores.size * GUESSED / 2))
    was_there = included.reshape(-1)[order]
    right = int((was_there[:each_side] == 0).sum() + (was_there[-each_side:] == 1).sum())
    accounted = epsilon([Release(NOISE_MULTIPLIER, 1.0, STEPS)], DELTA, "pld")
    bound = epsilon_bound(scores.size, 2 * each_side, right, DELTA)
    return {
        "variant": variant,
        "canaries": scores.size,
        "guesses": 2 * each_side,
        "right": right,
        "bound": round(bound, 2),
        "accountant": round(accounted, 2),
        "found_broken": bound > accounted,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--runs", type=whole_number, default=500, metavar="N", help="of each variant; %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    add_save(parser)
    options = parser.parse_args(arguments)
    results = []
    for variant in options.variants:
        results.append(audit(variant, options.runs, Noise()))
        print(
            json.dumps(results[-1]) if options.json else "{variant:<14}{bound:>6} of {accountant}".format(**results[-1])
        )
    save(options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
