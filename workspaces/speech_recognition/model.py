"""Recognizers by the type of their model: HuBERT, Wav2Vec2 and W2V-BERT with letters by CTC, and Whisper."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from openfl_audio.errors import SettingsError
from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.adapters import Lora, add_adapter, refuse_frozen
from openfl_audio.training.half_precision import guard_grouped_convolutions
from workspaces.speech_recognition import ctc, whisper
from workspaces.speech_recognition.ctc import CtcRecognizer
from workspaces.speech_recognition.letters import LETTERS
from workspaces.speech_recognition.whisper import WhisperRecognizer

CONFIGS = Path(__file__).parent / "configs"
Recognizer = CtcRecognizer | WhisperRecognizer


def create_recognizer(
    upstream: str | None = None,
    *,
    config: str | Path | None = None,
    frozen: bool = False,
    adapter: Lora | None = None,
    letters: str = LETTERS,
    language: str | None = None,
    task: str = "transcribe",
    seed: int = 0,
) -> Recognizer:
    """Return a recognizer.

    Args:
        upstream: a model as a hub name or as a folder, such as model/ of a run that pretrained one. The convolutions of
            HuBERT and Wav2Vec2 stay as they are, as in the papers' fine-tuning.
        config: a JSON file of a configuration, in `configs/` or elsewhere, for a random start; without a `model_type`
            it is one of HuBERT. One of the two is given.
        frozen: keep the encoder as it is.
        adapter: train adapters, and the layer to letters, alone.
        letters: what models of CTC write in.
        language: that Whisper hears, such as "en" or "german"; None for a model of English alone.
        task: of Whisper, "transcribe" or "translate".
        seed: of all weights that are not pretrained, and of adapters.

    Raises:
        PretrainedWeightsError: the weights cannot be had.
        SettingsError: the model is of another type, or arguments exclude each other.
    """
    if (upstream is None) == (config is None):
        raise ValueError("give either upstream (a hub name or a folder) or config (a JSON file, for a random start)")
    refuse_frozen(frozen, adapter)
    values, kind = _read_config(upstream, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "whisper":
            model: Any = whisper.create(upstream, values, frozen=frozen, language=language, task=task)
        elif kind in ctc.KINDS:
            model = ctc.create(upstream, values, kind, frozen=frozen, letters=letters)
        else:
            wanted = ", ".join((*ctc.KINDS, "whisper"))
            raise SettingsError(f"'{upstream or config}' is a model of type {kind!r}: it should be one of {wanted}")
    return add_adapter(guard_grouped_convolutions(model), adapter, seed)


def _read_config(upstream: str | None, config: str | Path | None) -> tuple[dict[str, Any], str]:
    if config is not None:
        values = json.loads((CONFIGS / config).read_text(encoding="utf-8"))
        return values, values.pop("model_type", "hubert")
    with explain_missing_weights(upstream):
        values = PreTrainedConfig.get_config_dict(str(upstream))[0]
    return values, str(values.get("model_type"))


def model_kind(upstream: str | None, config: str | Path | None) -> str:
    """Return the type of a model, such as "whisper", of the source that `create_recognizer` takes. Raises as there."""
    return _read_config(upstream, config)[1]


def save_recognizer(model: Recognizer, folder: Path) -> None:
    """Write what Transformers' own class, its processor and `pipeline` load from `folder`."""
    model.save_recognizer(folder)
