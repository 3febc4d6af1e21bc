"""SUPERB's keyword head on the layers of a speech model, for Transformers' Auto classes.

This file is copied into exported models, so it imports nothing of this project.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

SAMPLE_RATE = 16_000
N_MELS = 80
PROJECTOR_SIZE = 256


class UpstreamKeywordsConfig(PreTrainedConfig):
    """`upstream` is the configuration of the speech model; None where log-mel takes its place.

    `normalize`: bring each clip to mean 0 and variance 1 first, as some published models want it. With
    `fixed_convolutions` the rest of the speech model is all that learns where it is not frozen.
    """

    model_type = "upstream_keywords"
    upstream: dict[str, Any] | None = None
    normalize: bool = False
    fixed_convolutions: bool = False
    frozen: bool = True


class WeightedSumHead(torch.nn.Module):
    """Means over time of the layers' outputs (batch, layers, width) to logits (batch, labels).

    SUPERB's head for keyword spotting (Yang et al., arXiv 2105.01051, section 3): the layers are summed with weights
    that are learned, a softmax that begins even; then come a projection to 256, the mean over time, and a linear layer.
    All of it is linear in the frames, so that the mean may as well come first.
    """

    def __init__(self, layers: int, width: int, labels: int) -> None:
        super().__init__()
        self.layer_weights = torch.nn.Parameter(torch.zeros(layers))
        self.projector = torch.nn.Linear(width, PROJECTOR_SIZE)
        self.classifier = torch.nn.Linear(PROJECTOR_SIZE, labels)

    def forward(self, means: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.projector(self.layer_weights.softmax(0) @ means))


def read_upstream(values: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a speech model from its values."""
    return AutoConfig.for_model(**values)


def create_encoder(config: UpstreamKeywordsConfig) -> torch.nn.Module:
    """Return the speech model, or for log-mel a module that does nothing."""
    return torch.nn.Identity() if config.upstream is None else AutoModel.from_config(read_upstream(config.upstream))


def output_shape(config: UpstreamKeywordsConfig, encoder: Any) -> tuple[int, int]:
    """Return the shape of a clip's features: (layers, width)."""
    if config.upstream is None:
        return 1, N_MELS
    return encoder.config.num_hidden_layers + 1, encoder.config.hidden_size


def mean_features(config: UpstreamKeywordsConfig, encoder: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Return the means over time of the layers' outputs, (batch, layers, width).

    `inputs` are waveforms (batch, samples), or log-mel (batch, n_mels, frames) where there is no speech model.
    """
    if config.upstream is None:
        return inputs.mean(-1)[:, None]
    outputs = encoder(_standardize(inputs) if config.normalize else inputs, output_hidden_states=True)
    # Some models have one more normalization after the last layer.
    states = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
    return torch.stack([state.mean(1) for state in states], dim=1)


class UpstreamKeywordsForAudioClassification(PreTrainedModel):
    """One second of speech to logits: waveforms at 16 kHz, or log-mel where there is no speech model."""

    config_class = UpstreamKeywordsConfig
    config: UpstreamKeywordsConfig

    def __init__(self, config: UpstreamKeywordsConfig) -> None:
        super().__init__(config)
        self.encoder = create_encoder(config)
        self.head = WeightedSumHead(*output_shape(config, self.encoder), len(config.id2label or {}))
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits (batch, labels), and with `labels` the loss.

        Waveforms `input_values` (batch, samples) are filled up with zeros to one second, or cut; `input_features` are
        log-mel (batch, 80, frames).
        """
        inputs = _one_second(input_values) if input_values is not None else input_features
        if inputs is None:
            raise ValueError("give input_values or input_features")
        logits = self.head(mean_features(self.config, self.encoder, inputs))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _one_second(waveforms: torch.Tensor) -> torch.Tensor:
    cut = waveforms[:, :SAMPLE_RATE]
    return torch.nn.functional.pad(cut, (0, SAMPLE_RATE - cut.shape[-1]))


def _standardize(waveforms: torch.Tensor) -> torch.Tensor:
    # As Wav2Vec2FeatureExtractor does it.
    variance, mean = torch.var_mean(waveforms, dim=-1, correction=0, keepdim=True)
    return (waveforms - mean) / torch.sqrt(variance + 1e-7)
