"""Exported models at work: what a classifier or a recognizer hears in recordings, and speech without its noise."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)

from openfl_audio.errors import SettingsError
from openfl_audio.files import replacing
from openfl_audio.node.pretrained import explain_missing_weights
from shard_descriptors.common.audio import read_waveform

# Classes of this project by the model_type of a config.json: they are loaded from here, so that no code that lies in a
# model's folder is run.
OWN_CLASSES: Final = {
    "whisper_keywords": (
        "workspaces.keyword_spotting.modeling_whisper_keywords",
        "WhisperKeywordsForAudioClassification",
    ),
    "upstream_keywords": (
        "workspaces.keyword_spotting.modeling_upstream_keywords",
        "UpstreamKeywordsForAudioClassification",
    ),
    "sound_event_tagger": ("workspaces.sound_events.modeling_sound_events", "SoundEventsForAudioClassification"),
    "sudormrf": ("workspaces.speech_enhancement.modeling_speech_enhancement", "SudoRmRfForSpeechEnhancement"),
}
CLASSIFICATION, RECOGNITION, ENHANCEMENT = "Classification", "ForCTC", "SpeechEnhancement"
WRITING = "ForConditionalGeneration"  # Whisper
# Who speaks fast says four words a second, of fewer than two tokens each; a model may repeat itself without end.
TOKENS_PER_S, FEWEST_TOKENS = 10, 20


@dataclass(frozen=True)
class Heard:
    """Answer of a model to a file: scores by label, the highest first, or a text.

    Scores are probabilities, in [0, 1], but for a model that predicts numbers.
    """

    file: str
    scores: dict[str, float] = field(default_factory=dict)
    text: str | None = None


def predict(model: str, files: Iterable[Path], trust_code: bool = False) -> Iterator[Heard]:
    """Yield what a classifier or a recognizer hears in each of `files`, at any sample rate, mono or not.

    Args:
        model: the folder of an exported model, or a name on the Hugging Face hub.
        files: recordings.
        trust_code: whether code that comes with the model, and is none of this project, may be run.

    Raises:
        SettingsError: the model is neither a classifier nor a recognizer, or cannot be loaded.
        AudioError: a file cannot be read.
    """
    kind, config = read_model_config(model, trust_code)
    if kind not in _AT_WORK:
        wanted = "predict wants a classifier or a recognizer"
        advice = "; openfl-audio enhance takes this one" if kind == ENHANCEMENT else ""
        raise SettingsError(f"'{model}' is a {config.architectures[0]}: {wanted}{advice}")
    auto, hear = _AT_WORK[kind]
    with explain_missing_weights(model):
        loaded = auto.from_pretrained(model, trust_remote_code=trust_code).eval()
        extractor = AutoFeatureExtractor.from_pretrained(model)
        function = hear(model, loaded)
    for file in files:
        waveform = _fit(read_waveform(file, extractor.sampling_rate), extractor.sampling_rate, config)
        inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        with torch.inference_mode():
            yield function(str(file), inputs)


def enhance(model: str, source: Path, target: Path, trust_code: bool = False) -> None:
    """Write the speech of the recording `source` to `target`: WAV, mono, float32, at the model's sample rate.

    Raises:
        SettingsError: the model does not enhance speech, cannot be loaded, or `target` is `source`.
        AudioError: `source` cannot be read.
    """
    if target.resolve() == source.resolve():
        raise SettingsError(f"{target} is the recording itself: give another name for what is written")
    kind, config = read_model_config(model, trust_code)
    if kind != ENHANCEMENT:
        raise SettingsError(f"'{model}' is a {config.architectures[0]}: enhance wants a model for speech enhancement")
    with explain_missing_weights(model):
        loaded = AutoModel.from_pretrained(model, trust_remote_code=trust_code).eval()
    waveform = read_waveform(source, config.sample_rate)
    speech = loaded.enhance(torch.from_numpy(waveform)[None])[0].numpy()
    with replacing(target, durable=False) as temporary:
        # An estimate may go beyond 1, which 16 bits would cut off.
        soundfile.write(temporary, speech, config.sample_rate, format="WAV", subtype="FLOAT")


def read_model_config(model: str, trust_code: bool) -> tuple[str, Any]:
    """Return what a model does, by the end of its architecture's name, and its configuration."""
    _check_folder(model)
    for module, name in OWN_CLASSES.values():
        _register(getattr(import_module(module), name))
    try:
        with explain_missing_weights(model):
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_code)
    except ValueError as error:
        if "trust_remote_code" in str(error) and not trust_code:
            raise SettingsError(f"'{model}' comes with code of its own: --trust-code runs it") from None
        raise SettingsError(f"'{model}' has a configuration that Transformers does not read: {error}") from None
    [name] = (config.architectures or ["model without a name"])[:1]
    kinds = (CLASSIFICATION, RECOGNITION, WRITING, ENHANCEMENT)
    return next((kind for kind in kinds if name.endswith(kind)), ""), config


def _check_folder(model: str) -> None:
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").exists():
        inner = " (the model of a run is in its model/)" if (folder / "model" / "config.json").exists() else ""
        raise SettingsError(f"{folder} has no config.json{inner}")


def _register(kind: Any) -> None:
    config = kind.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    auto = AutoModelForAudioClassification if kind.__name__.endswith(CLASSIFICATION) else AutoModel
    auto.register(config, kind, exist_ok=True)


def _fit(waveform: np.ndarray, sample_rate: int, config: Any) -> np.ndarray:
    """Fill a waveform up with zeros, or cut it, to the length that the model has been trained on, if it is one."""
    seconds = getattr(config, "clip_seconds", None)
    if seconds is None:
        return waveform
    samples = round(seconds * sample_rate)
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform))))


def _classifier(name: str, model: Any) -> Callable[[str, Any], Heard]:
    kind = model.config.problem_type
    labels = model.config.id2label

    def hear(file: str, inputs: Any) -> Heard:
        logits = model(**inputs).logits[0]
        if kind != "regression":
            logits = logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(-1)
        scores = logits.tolist()
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return Heard(file, {labels[i]: scores[i] for i in order})

    return hear


def _recognizer(name: str, model: Any) -> Callable[[str, Any], Heard]:
    tokenizer = AutoTokenizer.from_pretrained(name)

    def hear(file: str, inputs: Any) -> Heard:
        return Heard(file, text=str(tokenizer.decode(model(**inputs).logits[0].argmax(-1))))

    return hear


def _writer(name: str, model: Any) -> Callable[[str, Any], Heard]:
    tokenizer = AutoTokenizer.from_pretrained(name)
    # What the tokenizer was saved with: the language and the task that the model was trained for.
    settings = tokenizer.init_kwargs
    forced = {key: settings[key] for key in ("language", "task") if settings.get(key)}
    multilingual = bool(getattr(model.generation_config, "is_multilingual", False))

    def hear(file: str, inputs: Any) -> Heard:
        seconds = inputs.input_features.shape[-1] / 100  # log-mel frames of 10 ms
        bound = min(model.config.max_target_positions // 2, FEWEST_TOKENS + round(TOKENS_PER_S * seconds))
        written = model.generate(**inputs, max_new_tokens=bound, **(forced if multilingual else {}))
        return Heard(file, text=str(tokenizer.decode(written[0], skip_special_tokens=True)).strip())

    return hear


_AT_WORK: Final[dict[str, tuple[Any, Callable[[str, Any], Callable[[str, Any], Heard]]]]] = {
    CLASSIFICATION: (AutoModelForAudioClassification, _classifier),
    RECOGNITION: (AutoModelForCTC, _recognizer),
    WRITING: (AutoModelForSpeechSeq2Seq, _writer),
}


def shown(heard: Heard, top: int) -> str:
    """Return a line for the terminal, with the `top` labels.

    >>> shown(Heard("a.wav", {"yes": 0.75, "no": 0.25}), 1), shown(Heard("b.wav", text="one two"), 5)
    ('a.wav: yes 0.750', 'b.wav: one two')
    """
    if heard.text is not None:
        return f"{heard.file}: {heard.text}"
    return f"{heard.file}: " + ", ".join(f"{label} {score:.3f}" for label, score in list(heard.scores.items())[:top])


def as_json(heard: Heard) -> str:
    """Return a line of JSON: `file`, and `scores` by label or `text`."""
    values = {"scores": heard.scores} if heard.text is None else {"text": heard.text}
    return json.dumps({"file": heard.file, **values})
