"""Whisper's encoder with a keyword head, for Transformers' Auto classes.

This file is copied into exported models, so it imports nothing of this project.
"""

import torch
from transformers import WhisperConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperPreTrainedModel

HEAD_CHANNELS = 128


class WhisperKeywordsConfig(WhisperConfig):
    """Whisper's configuration under a name of its own: Transformers' Auto classes would make another head for it."""

    model_type = "whisper_keywords"
    frozen: bool = True


def create_head(config: WhisperKeywordsConfig) -> torch.nn.Sequential:
    """Return the head that reads frames as channels: (batch, frames, width) to logits (batch, labels)."""
    return torch.nn.Sequential(
        torch.nn.Conv1d(config.max_source_positions, HEAD_CHANNELS, kernel_size=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(HEAD_CHANNELS * config.d_model, len(config.id2label or {})),
    )


class WhisperKeywordsForAudioClassification(WhisperPreTrainedModel):
    """Log-mel of WhisperFeatureExtractor to logits."""

    config_class = WhisperKeywordsConfig
    main_input_name = "input_features"

    def __init__(self, config: WhisperKeywordsConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.head = create_head(config)
        self.post_init()

    def forward(self, input_features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """Return logits (batch, labels) of `input_features` (batch, n_mels, frames), and with `labels` the loss."""
        logits = self.head(self.encoder(input_features).last_hidden_state)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
