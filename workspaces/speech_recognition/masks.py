"""SpecAugment: stripes of time and of features that are masked in training."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Masks:
    """Stripes of zeros in each clip of a batch: Park et al. 2019, arXiv 1904.08779, without time warping.

    Attributes:
        time: share of a clip's frames that stripes begin at, each `time_frames` long; they may overlap.
        time_frames: length of a stripe.
        features: stripes of channels, as wide as up to that share of them.
    """

    time: float = 0.0
    time_frames: int = 10
    features: float = 0.0

    def apply(self, values: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return `values` (batch, frames, channels) with stripes; `frames` (batch,) are those of the clips.

        What is drawn is of torch's generator on the CPU, whatever the device.
        """
        if not self.time and not self.features:
            return values
        kept = torch.ones(values.shape, dtype=torch.bool)
        width = int(self.features * values.shape[2])
        for clip, length in enumerate(frames.tolist()):
            starts = torch.nonzero(torch.rand(length) < self.time / self.time_frames).flatten().tolist()
            for start in starts:
                kept[clip, start : start + self.time_frames] = False
            if width:
                first, size = int(torch.randint(values.shape[2] - width + 1, ())), int(torch.randint(width + 1, ()))
                kept[clip, :, first : first + size] = False
        return values * kept.to(values.device)
