"""Scores of how well speech is understood and how good it sounds, where the packages that measure them are installed.

STOI: Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy speech", IEEE TASLP
2011; from 0 to 1. PESQ: ITU-T P.862.2, wide-band at 16 kHz, and P.862 at 8 kHz; about 1 to 4.6. Of both higher is
better.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.model import SudoRmRf
from workspaces.speech_enhancement.tasks import NOISES, enhance

# (reference, estimate), float32 (samples,) each, to a score.
Measure = Callable[[np.ndarray, np.ndarray], float]
PESQ_MODES = {8_000: "nb", 16_000: "wb"}


def find_measures(sample_rate: int) -> dict[str, Measure]:
    """Return the measures that can be taken here, by name: `stoi` and `pesq`, or none."""
    measures: dict[str, Measure] = {}
    if find_spec("pystoi"):
        stoi = import_module("pystoi").stoi
        measures["stoi"] = lambda reference, estimate: stoi(reference, estimate, sample_rate)
    if find_spec("pesq") and sample_rate in PESQ_MODES:
        pesq = import_module("pesq").pesq
        measures["pesq"] = lambda reference, estimate: pesq(sample_rate, reference, estimate, PESQ_MODES[sample_rate])
    return measures


def quality_over_clips(model: SudoRmRf, clips: Sources, device: str) -> dict[str, float]:
    """Return the means over clips of each measure, with one noise and with two, of estimates and of mixtures.

    They are called "stoi_1_noise" and "stoi_1_noise_mixture", say. A clip in which a measure finds no speech is left
    out; `stoi_1_noise_clips` is how many there are.
    """
    measures = find_measures(clips.sample_rate)
    found: dict[str, list[tuple[float, float]]] = {}
    model.eval()
    for item in range(len(clips)) if measures else ():
        sources = clips.whole(np.array([item]))
        reference = sources[0, 0].numpy()
        for metric, noises in NOISES.items():
            mixture = sources[:, : 1 + noises].sum(dim=1)
            estimate = enhance(model, mixture, device)[0].numpy()
            for name, measure in measures.items():
                pair = _measured(measure, reference, estimate, mixture[0].numpy())
                found.setdefault(f"{name}_{metric.removeprefix('si_sdri_')}", []).extend(pair)
    scores: dict[str, float] = {}
    for name, pairs in found.items():
        of_estimates, of_mixtures = np.mean(pairs, axis=0) if pairs else (np.nan, np.nan)
        scores |= {name: float(of_estimates), f"{name}_mixture": float(of_mixtures), f"{name}_clips": len(pairs)}
    return scores


def _measured(
    measure: Measure, reference: np.ndarray, estimate: np.ndarray, mixture: np.ndarray
) -> list[tuple[float, float]]:
    """Return the scores of estimate and mixture, or nothing where there is no speech to measure."""
    try:
        scores = float(measure(reference, estimate)), float(measure(reference, mixture))
    except (RuntimeError, ValueError, ZeroDivisionError):  # PESQ's NoUtterancesError is a RuntimeError
        return []
    return [scores] if np.isfinite(scores).all() else []
