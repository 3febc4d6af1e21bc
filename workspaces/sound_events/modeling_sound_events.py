"""A tagger that hears recordings, for Transformers' Auto classes.

This file and model.py are copied into exported models, so they import nothing else of this project.
"""

from functools import lru_cache

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import SequenceClassifierOutput

# Relative, as the two files also lie beside each other in an exported model.
from .model import FRAMES, N_MELS, Architecture, Normalisation, create_tagger

SAMPLE_RATE = 22_050
N_FFT, HOP_LENGTH = 660, 220  # samples
PATCH_HOP = 50  # frames
LOG_FLOOR = 1e-10
POWER_SCALE = 0.25


class SoundEventsConfig(PreTrainedConfig):
    """The arguments of `create_tagger`, and `features`: what patches hold, "log_mel" or "power"."""

    model_type = "sound_event_tagger"
    architecture: Architecture = "vgg"
    classes: int = 200
    normalisation: Normalisation = "group"
    width: float = 1.0
    features: str = "log_mel"


class SoundEventsForAudioClassification(PreTrainedModel):
    """Recordings at 22.05 kHz to a logit for every class, whose sigmoid is the mean score of the patches.

    Patches are one second long and begin every half second, as those that the tagger was trained on.
    """

    config_class = SoundEventsConfig
    base_model_prefix = "tagger"
    main_input_name = "input_values"

    def __init__(self, config: SoundEventsConfig) -> None:
        super().__init__(config)
        self.tagger = create_tagger(config.architecture, config.classes, config.normalisation, config.width)
        self.post_init()

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return logits (batch, classes) of `input_values` (batch, samples); `attention_mask` is 0 at padding."""
        lengths = [input_values.shape[-1]] * len(input_values)
        if attention_mask is not None:
            lengths = attention_mask.sum(-1).tolist()
        logits = [self._tag(waveform[:n]) for waveform, n in zip(input_values, lengths, strict=True)]
        return SequenceClassifierOutput(logits=torch.stack(logits))

    def _tag(self, waveform: torch.Tensor) -> torch.Tensor:
        patches = cut_patches(mel_frames(waveform.float(), self.config.features))
        return torch.logit(self.tagger(patches).sigmoid().mean(0), eps=1e-7)


def mel_frames(waveform: torch.Tensor, features: str) -> torch.Tensor:
    """Return frames (frames, 96) of `waveform` (samples,), rounded to float16 as a prepared corpus has them."""
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP_LENGTH, window=window, return_complex=True)
    power = spectrum.abs().square().T @ _filters().to(waveform.device)
    if features == "power":
        return (power * POWER_SCALE).half().float() / POWER_SCALE
    return power.clamp(min=LOG_FLOOR).log().half().float()


def cut_patches(frames: torch.Tensor) -> torch.Tensor:
    """Return patches (patches, 101, 96) of `frames` (frames, 96); a clip that is shorter than one begins again."""
    number = 1 + max(len(frames) - FRAMES, 0) // PATCH_HOP
    within = PATCH_HOP * torch.arange(number)[:, None] + torch.arange(FRAMES)
    return frames[within.to(frames.device) % len(frames)]


@lru_cache
def _filters() -> torch.Tensor:
    bank = mel_filter_bank(N_FFT // 2 + 1, N_MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, mel_scale="htk")
    return torch.from_numpy(bank).float()
