"""Masks of frames that are hidden from the model: spans, drawn for each clip by itself."""

import math

import numpy as np
from pydantic import Field

from openfl_audio.training.run_settings import Group


class MaskSettings(Group):
    """HuBERT's masks: `probability` / `length` of the frames, 8 %, begin a span of `length` frames.

    Some call that share itself the mask's probability: it is `start_probability`.
    """

    length: int = Field(default=10, ge=1, description="frames of a span")
    probability: float = Field(
        default=0.8, gt=0, description="share of the frames that spans would hide if none overlapped"
    )
    start_probability: float | None = Field(
        default=None, gt=0, le=1, description="share of the frames that begin a span, in place of probability / length"
    )

    @property
    def starts(self) -> float:
        """The share of the frames that begin a span."""
        return self.probability / self.length if self.start_probability is None else self.start_probability


def draw_mask(frames: int, settings: MaskSettings, generator: np.random.Generator) -> np.ndarray:
    """Return a mask, bool (frames,): True where the model does not see the frame.

    Spans begin at different frames, wherever one fits, and may overlap (Hsu et al., arXiv 2106.07447, section III-C;
    Baevski et al., arXiv 2006.11477). Their number is `probability` * frames / `length`, rounded up or down at random
    so that its mean is that; at least one. A mask depends on nothing but its arguments: fairseq and torchaudio unmask
    frames of a batch until every clip has as few as the one with the fewest.
    """
    length = min(settings.length, frames)
    starts = frames - length + 1
    wanted = math.floor(_mean_starts(frames, settings) + generator.random())
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
    mean = _mean_starts(frames, settings)
    share = 0.0
    for number, weight in ((math.floor(mean), 1 - mean % 1), (math.floor(mean) + 1, mean % 1)):
        drawn = min(max(number, 1), starts)
        visible = [math.comb(starts - r, drawn) / math.comb(starts, drawn) for r in reach.tolist()]
        share += weight * (1 - float(np.mean(visible)))
    return share


def _mean_starts(frames: int, settings: MaskSettings) -> float:
    if settings.start_probability is not None:
        return settings.start_probability * frames
    # In this order, as another one rounds differently now and then.
    return settings.probability * frames / settings.length
