"""Masks of frames that are hidden from the model: spans, drawn for each clip by itself."""

import math

import numpy as np
from pydantic import Field

from openfl_audio.training.run_settings import Group


class MaskSettings(Group):
    """HuBERT's masks: `probability` / `length` of the frames, 8 %, begin a span of `length` frames."""

    length: int = Field(default=10, ge=1)
    probability: float = Field(default=0.8, gt=0)


def draw_mask(frames: int, settings: MaskSettings, generator: np.random.Generator) -> np.ndarray:
    """Return a mask, bool (frames,): True where the model does not see the frame.

    Spans begin at different frames, wherever one fits, and may overlap (Hsu et al., arXiv 2106.07447, section III-C;
    Baevski et al., arXiv 2006.11477). Their number is `probability` * frames / `length`, rounded up or down at random
    so that its mean is that; at least one. A mask depends on nothing but its arguments: fairseq and torchaudio unmask
    frames of a batch until every clip has as few as the one with the fewest.
    """
    length = min(settings.length, frames)
    starts = frames - length + 1
    wanted = math.floor(settings.probability * frames / settings.length + generator.random())
    chosen = generator.choice(starts, size=min(max(wanted, 1), starts), replace=False)
    mask = np.zeros(frames, dtype=bool)
    mask[chosen[:, None] + np.arange(length)] = True
    return mask


def expected_share(frames: int, settings: MaskSettings) -> float:
    """Return the share of `frames`, all of one clip, that `draw_mask` hides on average: 0.57 of a long clip.

    A frame stays visible if none of the starts that reach it is among the n that are drawn out of m. It has r of them,
    fewer near the ends, and the probability of that is C(m - r, n) / C(m, n).
    """
    length = min(settings.length, frames)
    starts = frames - length + 1
    reach = np.convolve(np.ones(starts), np.ones(length)).astype(int)  # (frames,)
    mean = settings.probability * frames / settings.length
    share = 0.0
    for number, weight in ((math.floor(mean), 1 - mean % 1), (math.floor(mean) + 1, mean % 1)):
        drawn = min(max(number, 1), starts)
        visible = [math.comb(starts - r, drawn) / math.comb(starts, drawn) for r in reach.tolist()]
        share += weight * (1 - float(np.mean(visible)))
    return share
