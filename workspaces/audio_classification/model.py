"""Classifiers of audio: any of Transformers' by a name, a folder or a configuration, and what makes their inputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
)
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

from openfl_audio.errors import SettingsError
from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.adapters import Lora, add_adapter
from openfl_audio.training.compiler import prepare_compiler
from openfl_audio.training.half_precision import guard_grouped_convolutions
from workspaces.audio_classification.targets import Targets

CONFIGS = Path(__file__).parent / "configs"
# Makes the inputs of a model, float32, of a waveform (samples,).
Extractor = Callable[[np.ndarray], np.ndarray]


def create_classifier(
    pretrained: str | None = None,
    *,
    config: str | Path | None = None,
    targets: Targets,
    seed: int = 0,
    compile: bool = False,
    adapter: Lora | None = None,
) -> PreTrainedModel:
    """Return a model of `AutoModelForAudioClassification` with an output for each of the targets.

    `pretrained` is a hub name or a folder written by `save_pretrained`; a head of another size is replaced by a new
    one, and a convolutional feature encoder stays frozen. `config` is a JSON file with a `model_type`, in `configs/` or
    elsewhere, for a random start in which everything is trained. Weights that are not pretrained depend on `seed`. With
    `compile`, torch.compile makes it faster after a slow start; its tensors keep their names. With `adapter`, only
    adapters and the head are trained.

    Raises:
        PretrainedWeightsError: the weights cannot be had.
        SettingsError: both or neither of `pretrained` and `config` are given, or there is no such model, or none that
            takes the adapter; or `compile` on a machine without a C++ compiler or Python's headers.
    """
    if (pretrained is None) == (config is None):
        raise SettingsError("a model needs either pretrained (a hub name or a folder) or config (a JSON file)")
    names = {
        "num_labels": targets.num_outputs,
        "problem_type": targets.problem_type,
        **({"id2label": dict(enumerate(targets.classes))} if targets.classes else {}),
        **({"label2id": {name: i for i, name in enumerate(targets.classes)}} if targets.classes else {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config is not None:
            model = AutoModelForAudioClassification.from_config(read_config(config, names))
        else:
            with explain_missing_weights(pretrained):
                source: Any = pretrained
                model = AutoModelForAudioClassification.from_pretrained(source, ignore_mismatched_sizes=True, **names)
            if hasattr(model, "freeze_feature_encoder"):
                model.freeze_feature_encoder()
    guard_grouped_convolutions(model)
    add_adapter(model, adapter, seed)
    if compile:
        prepare_compiler()
        model.compile()
    return model


def read_config(config: str | Path, names: dict[str, Any] | None = None) -> Any:
    """Return a configuration of Transformers from a JSON file, by a name in `configs/` or by its path."""
    values = json.loads((CONFIGS / config).read_text(encoding="utf-8"))
    if "model_type" not in values:
        raise SettingsError(f"{config} has no model_type, such as wav2vec2")
    try:
        return AutoConfig.for_model(**values, **(names or {}))
    except ValueError as error:
        raise SettingsError(f"{config}: {error}") from error


def create_extractor(pretrained: str | None = None, *, config: str | Path | None = None) -> Any:
    """Return the feature extractor that belongs to a model, with its published settings where it is pretrained."""
    if pretrained is not None:
        with explain_missing_weights(pretrained):
            return AutoFeatureExtractor.from_pretrained(pretrained)
    if config is None:
        raise SettingsError("an extractor needs the pretrained or the config of its model")
    of_model = read_config(config)
    if of_model.model_type == "wav2vec2-bert":
        # Transformers' table has Wav2Vec2's extractor here; the published models hear frames in pairs, by this one.
        bands = of_model.feature_projection_input_dim // 2
        return SeamlessM4TFeatureExtractor(feature_size=bands, num_mel_bins=bands)
    kind: Any = FEATURE_EXTRACTOR_MAPPING[type(of_model)]
    # Spectrograms have as many bands as the model reads.
    bands = getattr(of_model, "num_mel_bins", None)
    name = {"WhisperFeatureExtractor": "feature_size", "ASTFeatureExtractor": "num_mel_bins"}.get(kind.__name__)
    return kind(**({name: bands} if name and bands else {}))


def make_inputs(extractor: Any, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the inputs of a model for a waveform (samples,): those of an extractor, or without one the waveform."""
    if extractor is None:
        return waveform
    features = extractor(waveform, sampling_rate=sample_rate, return_tensors="np")
    return np.asarray(features[extractor.model_input_names[0]][0], dtype=np.float32)


def frequency_axis(extractor: Any) -> int:
    """Return which axis of an extractor's spectrogram is that of frequency: Whisper's is (bands, frames)."""
    return 0 if type(extractor).__name__ == "WhisperFeatureExtractor" else 1


def predict(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return logits (batch, outputs), of a model of Transformers or of any module that returns them."""
    outputs = model(inputs)
    return outputs.logits if hasattr(outputs, "logits") else outputs
