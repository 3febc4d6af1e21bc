"""Settings of differential privacy, as a plan has them: what is protected, and the numbers that its cost follows from.

A site charges its budget from these numbers alone, and never from what a task says of itself.
"""

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from openfl_audio.errors import PrivacyError
from openfl_audio.protocol.part import Part

# How a unit's gradient is bounded: see `openfl_audio.privacy.clipping`.
Clipping = Literal["flat", "per_layer", "per_dimension"]
Unit = Literal["record", "speaker", "site"]
# An environment variable with a seed of noise that repeats, which `openfl_audio.testing.noise` sets for tests.
TEST_NOISE = "OPENFL_AUDIO_TEST_NOISE"


def refuse_test_noise(reason: str) -> None:
    """Raise PrivacyError if noise repeats in this process, where that must not be: `reason` says who it is."""
    if TEST_NOISE in os.environ:
        raise PrivacyError(f"{TEST_NOISE} makes noise repeat, which protects nobody, and {reason}: start it without")


class _GradientLevel(Part):
    """DP-SGD in the tasks of a round: `steps` steps, each with noise on the clipped gradients of units drawn for it.

    In a step each unit of a site is drawn by itself, in secret, with `probability`.
    """

    noise_multiplier: float = Field(gt=0, description="standard deviation of the noise over the bound `clip`")
    clip: float = Field(gt=0, description="largest norm of a unit's part in a step's gradient")
    delta: float = Field(
        gt=0, lt=1, description="the delta at which epsilon is told: far below one over the number of units"
    )
    probability: float = Field(gt=0, le=1, description="probability of each unit to be drawn in a step")
    steps: int = Field(ge=1, le=10**6, description="steps of a round, whatever the number of clips")
    clipping: Clipping = Field(
        default="flat", description="bound of the whole gradient, or of each tensor by itself or by its size"
    )


class RecordLevel(_GradientLevel):
    """Differential privacy of each recording, by DP-SGD at the sites."""

    unit: Literal["record"] = Field(default="record", description="what is protected: a recording")

    @property
    def clips_per_unit(self) -> int:
        """Return how many clips a unit has at most in a step."""
        return 1


class SpeakerLevel(_GradientLevel):
    """Differential privacy of each speaker, with all of a speaker's recordings at a site, by DP-SGD there."""

    unit: Literal["speaker"] = Field(default="speaker", description="what is protected: a speaker")
    clips_per_speaker: int = Field(
        ge=1, description="the most clips of a drawn speaker that a step takes, drawn anew in each step"
    )

    @property
    def clips_per_unit(self) -> int:
        """Return how many clips a unit has at most in a step."""
        return self.clips_per_speaker


class AdaptiveClip(Part):
    """A bound that follows a quantile of the norms of updates, which is learned with noise.

    Andrew et al., "Differentially private learning with adaptive clipping", arXiv 1905.03871, algorithm 1: in a round
    with bound C each site says whether its norm is at most C, as +1/2 or -1/2, and with b the noisy mean of what was
    said plus 1/2

        C <- C * exp(-rate * (b - quantile))
    """

    count_noise: float = Field(
        gt=0,
        description="standard deviation of the noise on the sum of what sites say: a twentieth of their number, say",
    )
    quantile: float = Field(default=0.5, gt=0, lt=1, description="share of the updates that is to stay as it is")
    rate: float = Field(default=0.2, gt=0, description="how fast the bound moves")

    def update_noise(self, noise_multiplier: float) -> float:
        """Return the multiplier of the noise on updates, with which both releases together cost `noise_multiplier`.

        It is (z^-2 - (2 s)^-2)^(-1/2) with z the multiplier and s `count_noise` (theorem 1 of the paper): what is said
        changes the sum by at most 1/2. Raises ValueError where the count alone would cost as much.
        """
        rest = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if rest <= 0:
            raise ValueError(
                f"count_noise is {self.count_noise}: with a noise multiplier of {noise_multiplier} it should be above "
                f"{noise_multiplier / 2}, as the count is paid from the same budget"
            )
        return float(rest**-0.5)


class SiteLevel(Part):
    """Differential privacy of each site: noise on the mean of clipped updates.

    The director adds it, and is trusted. With secure aggregation it is not: each site clips its own update, and adds a
    share of the noise. Every round releases its mean once. No gain by sampling is counted, as the participants follow
    from a public seed.
    """

    unit: Literal["site"] = Field(default="site", description="what is protected: all recordings of a site together")
    noise_multiplier: float = Field(
        gt=0, description="standard deviation of the noise on the sum over the bound `clip`"
    )
    clip: float = Field(gt=0, description="largest norm of an update's distance from the global model; the first one")
    delta: float = Field(
        gt=0, lt=1, description="the delta at which epsilon is told: far below one over the number of sites"
    )
    clipping: Clipping = Field(
        default="flat", description="bound of the whole update, or of each tensor by itself or by its size"
    )
    adaptive: AdaptiveClip | None = Field(
        default=None, description="let the bound follow a quantile of the updates' norms; without it `clip` stays"
    )
    colluders: int | None = Field(
        default=None,
        ge=0,
        description="with secure aggregation: how many envoys may tell the director their noise, so that that of the "
        "others has to do; without it as many as secure aggregation bears",
    )

    @model_validator(mode="after")
    def check_adaptive(self) -> "SiteLevel":
        """Raise ValueError for a bound that cannot adapt."""
        if self.adaptive is not None:
            if self.clipping != "flat":
                raise ValueError("adaptive follows the norm of whole updates: use clipping flat")
            self.adaptive.update_noise(self.noise_multiplier)
        return self

    @property
    def probability(self) -> float:
        """Return the probability of a site to be in a round, as far as it may be counted on."""
        return 1.0

    @property
    def steps(self) -> int:
        """Return how many times a round releases what sites have sent."""
        return 1


GradientLevel = RecordLevel | SpeakerLevel
Level = GradientLevel | SiteLevel
Privacy = Annotated[Level, Field(discriminator="unit")]
