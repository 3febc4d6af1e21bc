"""An exported classifier as a file of ONNX, for runtimes without PyTorch."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForAudioClassification

from openfl_audio.errors import SettingsError
from openfl_audio.experiments.prediction import CLASSIFICATION, read_model_config
from openfl_audio.files import replacing
from openfl_audio.node.pretrained import explain_missing_weights

OPSET = 17


class _Logits(torch.nn.Module):
    """A model whose output is a tensor, of one that may return Transformers' outputs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.model(inputs)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def write_onnx(model: str, path: Path, trust_code: bool = False) -> tuple[str, tuple[int | str, ...]]:
    """Write a classifier into `path`, and return the name and the shape of its input, "batch" first.

    It takes what comes after the feature extractor: log-mel `input_features`, `input_values` (batch, samples), or of a
    tagger of sound events `patches` (batch, 101, 96) of log-mel frames. Its output is `logits` (batch, classes).

    Args:
        model: the folder of an exported model, or a name on the Hugging Face hub.
        path: the file.
        trust_code: whether code that comes with the model, and is none of this project, may be run.

    Raises:
        SettingsError: the model is no classifier, cannot be loaded or expressed in ONNX, or ONNX is not installed.
    """
    kind, config = read_model_config(model, trust_code)
    if kind != CLASSIFICATION:
        raise SettingsError(f"'{model}' is a {config.architectures[0]}: onnx wants a classifier")
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise SettingsError("onnx is not installed: pip install 'openfl-audio[onnx]'") from None
    with explain_missing_weights(model):
        loaded = AutoModelForAudioClassification.from_pretrained(model, trust_remote_code=trust_code).eval()
    name, module, example = _inputs_of(loaded)
    axes = {name: {0: "batch"}, "logits": {0: "batch"}}
    try:
        # The exporter that needs no further package tells that there is another one, and warns of each constant.
        with warnings.catch_warnings(), replacing(path, durable=False) as temporary:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Logits(module),
                (example,),
                str(temporary),
                dynamo=False,
                input_names=[name],
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=OPSET,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingsError(f"'{model}' cannot be written as ONNX: {reason:.300}") from None
    return name, ("batch", *example.shape[1:])


def _inputs_of(model: Any) -> tuple[str, torch.nn.Module, torch.Tensor]:
    """Return the name of the input, the part of the model that takes it, and an example of two clips."""
    config = model.config
    if hasattr(model, "tagger"):
        return "patches", model.tagger, torch.zeros(2, 101, 96)
    if model.main_input_name == "input_features" and hasattr(config, "max_source_positions"):
        frames = 2 * config.max_source_positions  # the encoder halves them
        return "input_features", model, torch.zeros(2, config.num_mel_bins, frames)
    if model.main_input_name == "input_values":
        return "input_values", model, torch.zeros(2, 16_000)
    raise SettingsError(f"a {type(model).__name__} takes {model.main_input_name}, of a shape that is not known here")
