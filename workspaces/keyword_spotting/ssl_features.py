"""A speech model as the upstream of a small classifier, as SUPERB measures what its features are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
)

from openfl_audio.errors import SettingsError
from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.adapters import Lora, add_adapter, refuse_frozen
from openfl_audio.training.export import label_names
from openfl_audio.training.half_precision import guard_grouped_convolutions
from workspaces.keyword_spotting.data import MAX_SHIFT_SAMPLES
from workspaces.keyword_spotting.model import SAMPLE_RATE, EncoderModel, check_source, read_config
from workspaces.keyword_spotting.modeling_upstream_keywords import (
    N_MELS,
    UpstreamKeywordsConfig,
    WeightedSumHead,
    create_encoder,
    mean_features,
    output_shape,
    read_upstream,
)
from workspaces.keyword_spotting.whisper import FRAMES_PER_S, compute_log_mel

LOG_MEL = "log_mel"
MODEL_TYPES = ("hubert", "wav2vec2")


class UpstreamForKeywords(EncoderModel, PreTrainedModel):
    """One second of speech to logits: HuBERT, Wav2Vec2 or log-mel, then SUPERB's head.

    Of a transformer the head sees the outputs of all layers and the input of the first. Log-mel is Whisper's, 80 bands
    every 10 ms, as one layer: what the head can make of that is what its mean spectrum tells.
    """

    config_class = UpstreamKeywordsConfig
    config: UpstreamKeywordsConfig
    frames = FRAMES_PER_S

    def __init__(self, config: UpstreamKeywordsConfig) -> None:
        super().__init__(config)
        self.encoder = create_encoder(config)
        self.head = WeightedSumHead(*self.output_shape, len(config.id2label or {}))
        guard_grouped_convolutions(self.encoder)
        self.post_init()
        self.freeze()

    @property
    def inputs_name(self) -> str:
        return "mean log-mel" if self.config.upstream is None else "means of layers"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a clip's inputs: (samples,), or (n_mels, frames) for log-mel."""
        return (SAMPLE_RATE,) if self.config.upstream is not None else (N_MELS, 2 * FRAMES_PER_S)

    @property
    def output_shape(self) -> tuple[int, int]:
        """Shape of a clip's features: (layers, width)."""
        return output_shape(self.config, self.encoder)

    def make_inputs(self, waveforms: Sequence[np.ndarray], device: str = "cpu") -> torch.Tensor:
        if self.config.upstream is None:
            return compute_log_mel(_LOG_MEL, waveforms, device)
        # All of one length: normalisation and attention, as published, would hear the padding of a batch.
        inputs = torch.zeros(len(waveforms), SAMPLE_RATE)
        for clip, waveform in zip(inputs, waveforms, strict=True):
            clip[: len(waveform)] = torch.from_numpy(waveform[:SAMPLE_RATE])
        return inputs

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the means over time of the layers' outputs, (batch, layers, width), for `inputs`."""
        return mean_features(self.config, self.encoder, inputs)

    def vary(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Shift each clip in time by up to a tenth of a second, around the corner."""
        most = MAX_SHIFT_SAMPLES * inputs.shape[-1] // SAMPLE_RATE
        shifts = torch.randint(-most, most + 1, (len(inputs),), generator=generator).tolist()
        return torch.stack([clip.roll(shift, -1) for clip, shift in zip(inputs, shifts, strict=True)])

    def encoder_values(self) -> dict[str, Any]:
        return {"upstream": self.config.upstream, "normalize": self.config.normalize}

    def freeze(self) -> None:
        super().freeze()
        if self.config.fixed_convolutions:
            self.encoder.feature_extractor._freeze_parameters()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Draw the weights of the head as PyTorch does; the encoder draws its own."""
        if isinstance(module, torch.nn.Linear) and module in (self.head.projector, self.head.classifier):
            module.reset_parameters()


def create_upstream(
    upstream: str | None = None,
    *,
    config: str | Path | None = None,
    labels: Sequence[str],
    frozen: bool = True,
    seed: int = 0,
    adapter: Lora | None = None,
) -> UpstreamForKeywords:
    """Return a keyword classifier over the features of a speech model.

    Args:
        upstream: HuBERT or Wav2Vec2 as a hub name or as a folder; or "log_mel". Where it is trained too, its
            convolutions stay as they are, as in fine-tuning of HuBERT (Hsu et al., arXiv 2106.07447).
        config: a JSON file of HubertConfig, for a random start. One of `upstream` and `config` is given.
        labels: names of the classes.
        frozen: train the head alone: the weights of the layers, the projection and the classifier.
        seed: of all weights that are not pretrained, and of adapters.
        adapter: train adapters in the encoder, which is not `frozen` then, and the head, alone.

    Raises:
        PretrainedWeightsError: the weights cannot be had.
        SettingsError: the model is of another kind; or the encoder is frozen, or does not take the adapter.
    """
    check_source(upstream, config)
    refuse_frozen(frozen, adapter)
    values: dict[str, Any] = {"frozen": frozen, **label_names(labels)}
    weights = None
    if config is not None:
        values["upstream"] = _complete(read_config(config), str(config))
    elif upstream != LOG_MEL:
        with explain_missing_weights(upstream):
            values["upstream"] = _complete(PreTrainedConfig.get_config_dict(str(upstream))[0], str(upstream))
            values["normalize"] = Wav2Vec2FeatureExtractor.from_pretrained(str(upstream)).do_normalize
            values["fixed_convolutions"] = True
            weights = AutoModel.from_pretrained(str(upstream), dtype=torch.float32).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UpstreamForKeywords(UpstreamKeywordsConfig(**values))
    if weights is not None:
        model.encoder.load_state_dict(weights)
    return add_adapter(model, adapter, seed)


def _complete(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a speech model's configuration, of a file that may leave out what is Transformers' default."""
    kind = values.get("model_type", "hubert")
    if kind not in MODEL_TYPES:
        raise SettingsError(f"'{source}' is a model of type {kind!r}: an upstream should be {' or '.join(MODEL_TYPES)}")
    # Masks would be drawn from a generator that is not seeded, and the head needs the outputs of every layer.
    return read_upstream(values | {"model_type": kind, "apply_spec_augment": False, "layerdrop": 0.0}).to_dict()


_LOG_MEL = WhisperConfig(num_mel_bins=N_MELS, max_source_positions=FRAMES_PER_S)
