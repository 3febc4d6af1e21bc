"""Wav2Vec2 with a classification head, from pretrained weights or from a random start."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.adapters import Lora, add_adapter
from openfl_audio.training.export import extend_config, label_names
from openfl_audio.training.half_precision import guard_grouped_convolutions
from workspaces.keyword_spotting.model import SAMPLE_RATE, check_source

CONFIGS = Path(__file__).parent / "configs"


def create_wav2vec2(
    pretrained: str | None = None,
    *,
    config: str | Path | None = None,
    labels: Sequence[str],
    seed: int = 0,
    adapter: Lora | None = None,
) -> Wav2Vec2ForSequenceClassification:
    """Return a classifier of waveforms: `input_values` (batch, samples) to logits (batch, len(labels)).

    The first normalisation and the mean over frames, as published, take in all samples of a clip, its padding included.
    So the model is trained and evaluated on clips of one length: one second, to which the shard fills shorter
    recordings up with zeros. A clip has the same scores alone as among others of its length; batches of several
    lengths are refused.

    `pretrained` is a hub name or a folder written by `save_pretrained`; its convolutional feature encoder stays frozen,
    as in fine-tuning of wav2vec 2.0 (Baevski et al., arXiv 2006.11477). `config` is a JSON file, in `configs/`
    or elsewhere, for a random start in which everything is trained. Weights that are not pretrained depend on `seed`.
    With `adapter`, only adapters and the head are trained.
    Raises PretrainedWeightsError when the weights cannot be had.
    """
    check_source(pretrained, config)
    names = label_names(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config is not None:
            values = json.loads((CONFIGS / config).read_text())
            model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**values, **names))
        else:
            with explain_missing_weights(pretrained):
                model = Wav2Vec2ForSequenceClassification.from_pretrained(pretrained, **names)
            model.freeze_feature_encoder()
    return add_adapter(guard_grouped_convolutions(model), adapter, seed)


def create_feature_extractor() -> Wav2Vec2FeatureExtractor:
    """Return a feature extractor that scales each clip to mean 0 and variance 1."""
    return Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=True)


def save_wav2vec2(model: Wav2Vec2ForSequenceClassification, folder: Path) -> None:
    """Write weights, configuration and feature extractor, which `transformers.pipeline` loads, into `folder`."""
    model.save_pretrained(folder)
    create_feature_extractor().save_pretrained(folder)
    extend_config(folder, {"clip_seconds": 1.0})
