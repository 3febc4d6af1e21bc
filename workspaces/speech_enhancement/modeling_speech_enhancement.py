"""A SuDoRM-RF that enhances recordings, for Transformers' Auto classes.

This file and model.py are copied into exported models, so they import nothing else of this project.
"""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

# Relative, as the two files also lie beside each other in an exported model.
from .model import SudoRmRf


class SpeechEnhancementConfig(PreTrainedConfig):
    """The sizes of a SuDoRM-RF, and the sample rate in Hz that it works at."""

    model_type = "sudormrf"
    out_channels: int = 256
    in_channels: int = 512
    num_blocks: int = 8
    upsampling_depth: int = 5
    kernel_size: int = 41
    num_bases: int = 512
    num_groups: int = 16
    num_sources: int = 3
    sample_rate: int = 16_000


class SudoRmRfForSpeechEnhancement(PreTrainedModel):
    """Mixtures to sources that add up to them; the first one is the speech."""

    config_class = SpeechEnhancementConfig
    base_model_prefix = "separator"
    main_input_name = "input_values"

    def __init__(self, config: SpeechEnhancementConfig) -> None:
        super().__init__(config)
        self.separator = SudoRmRf(config)
        self.post_init()

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """Return sources (batch, sources, samples) of waveforms (batch, samples) of any level and length."""
        return self.separator.separate(input_values)

    @torch.inference_mode()
    def enhance(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return the speech in waveforms (batch, samples): (batch, samples)."""
        return self(waveforms)[:, 0]
