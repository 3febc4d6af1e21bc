"""Settings of differential privacy, as a plan has them: what is protected, and the numbers that its cost follows from.

A site charges its budget from these numbers alone, and never from what a task says of itself.
"""

from typing import Annotated, Literal

from pydantic import Field

from openfl_audio.protocol.part import Part

# How a unit's gradient is bounded: see `openfl_audio.privacy.clipping`.
Clipping = Literal["flat", "per_layer", "per_dimension"]
Unit = Literal["record", "speaker", "site"]
# An environment variable with a seed of noise that repeats, which `openfl_audio.testing.noise` sets for tests. Nothing
# is private with it, so that an envoy with a budget does not start.
TEST_NOISE = "OPENFL_AUDIO_TEST_NOISE"


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


GradientLevel = RecordLevel | SpeakerLevel
Privacy = Annotated[GradientLevel, Field(discriminator="unit")]
