"""Whisper's encoder with a small classification head, from pretrained weights or from a random start."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperPreTrainedModel

from workspaces.keyword_spotting.model import (
    SAMPLE_RATE,
    check_source,
    explain_missing_weights,
    label_names,
    read_config,
)

FRAMES_PER_S = 50  # of the encoder; the log-mel that it reads has twice as many
HEAD_CHANNELS = 128
FORMS = ("exact", "short")


class WhisperKeywordsConfig(WhisperConfig):
    """Whisper's configuration under a name of its own: transformers' Auto classes would make another head for it."""

    model_type = "whisper_keywords"
    frozen: bool = True


class WhisperForKeywords(WhisperPreTrainedModel):
    """Log-mel frames to logits: Whisper's encoder, then a head that reads frames as channels.

    The head is Conv1d(frames -> 128, kernel 1), ReLU, Flatten, Linear(128 * width -> labels): 781,964 parameters for
    twelve labels on whisper-tiny. It is that of Flower's example "On-device Federated Downstreaming for Speech
    Classification"; the encoder is that of Radford et al., arXiv 2212.04356.

    `config.frozen` keeps the encoder as it is: no gradients, and no dropout in training.
    """

    config_class = WhisperKeywordsConfig
    config: WhisperKeywordsConfig

    def __init__(self, config: WhisperKeywordsConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.head = torch.nn.Sequential(
            torch.nn.Conv1d(config.max_source_positions, HEAD_CHANNELS, kernel_size=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(HEAD_CHANNELS * config.d_model, len(config.id2label or {})),
        )
        self.post_init()
        self._freeze()

    @property
    def frozen(self) -> bool:
        return self.config.frozen

    @property
    def form(self) -> str:
        """ "short" if the encoder sees one second, else "exact"."""
        return "short" if self.config.max_source_positions == FRAMES_PER_S else "exact"

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """`input_features` (batch, n_mels, 2 * frames) to logits (batch, labels)."""
        return self.head(self.encode(input_features))

    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """`input_features` (batch, n_mels, 2 * frames) to encoder outputs (batch, frames, width), for `head`."""
        return self.encoder(input_features).last_hidden_state

    def train(self, mode: bool = True) -> "WhisperForKeywords":
        super().train(mode)
        # Here too, as from_pretrained makes everything trainable. The last that it does is to call this.
        self._freeze()
        return self

    def _freeze(self) -> None:
        self.encoder.embed_positions.requires_grad_(False)  # fixed in Whisper
        if self.frozen:
            self.encoder.requires_grad_(False).eval()

    def encoder_key(self) -> str:
        """A hash of all that the encoder's outputs depend on, besides its input; kept until a weight changes."""
        tensors = self.encoder.state_dict(keep_vars=True)
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors.values())
        if getattr(self, "_key_state", None) != state:
            self._key_state, self._key = state, _hash_encoder(self.config, tensors)
        return self._key

    def _init_weights(self, module: torch.nn.Module) -> None:
        # PyTorch's own start, as in the example; Whisper's is many times as wide for so wide a layer.
        if isinstance(module, torch.nn.Conv1d | torch.nn.Linear) and module in list(self.head):
            module.reset_parameters()
        else:
            super()._init_weights(module)


def create_whisper(
    pretrained: str | None = None,
    *,
    config: str | Path | None = None,
    labels: Sequence[str],
    form: str = "exact",
    frozen: bool = True,
    seed: int = 0,
    compile: bool = False,
) -> WhisperForKeywords:
    """A keyword classifier of log-mel frames (`create_log_mel`).

    Args:
        pretrained: a Whisper model as a hub name (`openai/whisper-tiny`) or as a folder written by `save_pretrained`;
            or a folder that a WhisperForKeywords was saved to, which comes back with its head.
        config: a JSON file of WhisperConfig, for a random start. One of `pretrained` and `config` is given.
        labels: names of the classes.
        form: "exact" takes the encoder as it is: Whisper's is for 30 s, 1500 frames, so that a clip of one second is
            filled up with silence. "short" keeps the first 50 positions only, which is one second.
        frozen: train the head alone.
        seed: of all weights that are not pretrained.
        compile: let torch.compile make it faster after a slow start.

    Raises:
        PretrainedWeightsError: the weights cannot be had.
        ValueError: arguments that exclude each other, or do not go with a saved model.
    """
    check_source(pretrained, config)
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown; choose {' or '.join(FORMS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config is not None:
            values = read_config(config)
            model = WhisperForKeywords(_keywords_config(values, labels, form, frozen))
        else:
            model = _from_pretrained(str(pretrained), labels, form, frozen)
    if compile:
        model.encoder.compile()
        model.head.compile()
    return model


def create_log_mel(n_mels: int, num_frames: int) -> WhisperFeatureExtractor:
    """Whisper's feature extractor for a window of `num_frames` encoder frames (1500 for 30 s, 50 for one second)."""
    if num_frames % FRAMES_PER_S:
        raise ValueError(f"max_source_positions is {num_frames}, but should be whole seconds of {FRAMES_PER_S} frames")
    return WhisperFeatureExtractor(
        feature_size=n_mels, chunk_length=num_frames // FRAMES_PER_S, sampling_rate=SAMPLE_RATE
    )


_log_mel_of = lru_cache(create_log_mel)  # its filters take longer to make than a clip's features


def compute_log_mel(config: WhisperConfig, waveforms: Sequence[np.ndarray], device: str = "cpu") -> torch.Tensor:
    """`waveforms`, each float32 (samples,) at 16 kHz, to what an encoder of `config` reads, on the CPU.

    Shape (batch, n_mels, 2 * frames): shorter clips are filled up with silence, longer ones cut. A clip's values do
    not depend on the other clips.
    """
    frames = config.max_source_positions
    # Silence is the same in every frame: a second of it is computed and the rest, 28 of 30 s for a short clip, copied.
    longest_s = math.ceil(max(len(waveform) for waveform in waveforms) / SAMPLE_RATE)
    computed = min(frames, (longest_s + 1) * FRAMES_PER_S)
    extractor = _log_mel_of(config.num_mel_bins, computed)
    features = extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt", device=device).input_features
    return torch.cat([features, features[..., -1:].expand(-1, -1, 2 * (frames - computed))], dim=-1)


def _keywords_config(values: dict, labels: Sequence[str], form: str, frozen: bool) -> WhisperKeywordsConfig:
    config = WhisperKeywordsConfig(**values | label_names(labels) | {"frozen": frozen})
    if form == "short":
        config.max_source_positions = FRAMES_PER_S
    return config


def _from_pretrained(pretrained: str, labels: Sequence[str], form: str, frozen: bool) -> WhisperForKeywords:
    with explain_missing_weights(pretrained):
        saved = WhisperKeywordsConfig.get_config_dict(pretrained)[0]
        if saved.get("model_type") == WhisperKeywordsConfig.model_type:
            _check_saved(pretrained, saved, labels, form)
            return WhisperForKeywords.from_pretrained(pretrained, frozen=frozen)
        whisper = WhisperModel.from_pretrained(pretrained, dtype=torch.float32)
    model = WhisperForKeywords(_keywords_config(_encoder_values(whisper.config), labels, form, frozen))
    weights = whisper.encoder.state_dict()
    positions = "embed_positions.weight"
    weights[positions] = weights[positions][: model.config.max_source_positions]
    model.encoder.load_state_dict(weights)
    return model


def _encoder_values(config: WhisperConfig) -> dict:
    """Of a whole Whisper's configuration, what its encoder needs."""
    names = ("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    more = ("activation_function", "max_source_positions", "dropout", "attention_dropout", "activation_dropout")
    return {name: getattr(config, name) for name in names + more}


def _check_saved(pretrained: str, saved: dict, labels: Sequence[str], form: str) -> None:
    own = [name for _, name in sorted(saved["id2label"].items(), key=lambda item: int(item[0]))]
    if own != list(labels):
        raise ValueError(f"'{pretrained}' has a head for {own}, not for {list(labels)}")
    if form == "short" and saved["max_source_positions"] != FRAMES_PER_S:
        raise ValueError(f"'{pretrained}' has a head for {saved['max_source_positions']} frames, which is not short")


def _hash_encoder(config: WhisperConfig, tensors: dict[str, torch.Tensor]) -> str:
    values = {name: value for name, value in _encoder_values(config).items() if "dropout" not in name}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
