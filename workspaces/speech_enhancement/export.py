"""A SuDoRM-RF as a folder: for `load_sudormrf`, and for Transformers' Auto classes."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from openfl_audio.files import replacing, write_json
from openfl_audio.training.export import add_code
from workspaces.speech_enhancement.model import SAMPLE_RATE, SudoRmRf
from workspaces.speech_enhancement.settings import SudoRmRfSettings

CODE = ("model.py", "modeling_speech_enhancement.py")
CLASSES = {
    "AutoConfig": "modeling_speech_enhancement.SpeechEnhancementConfig",
    "AutoModel": "modeling_speech_enhancement.SudoRmRfForSpeechEnhancement",
}


def save_sudormrf(model: SudoRmRf, folder: Path, sample_rate: int = SAMPLE_RATE) -> None:
    """Write weights, configuration and code of a model, for waveforms of `sample_rate` in Hz, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(model.sizes, name) for name in SudoRmRfSettings.model_fields}
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / "model.safetensors", durable=False) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    write_json(folder / "config.json", {**sizes, "sample_rate": sample_rate})
    add_code(folder, [Path(__file__).with_name(name) for name in CODE], "sudormrf", CLASSES)


def load_sudormrf(folder: str | Path) -> SudoRmRf:
    """Load the model that `save_sudormrf` wrote."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    model = SudoRmRf(
        SudoRmRfSettings(**{name: config[name] for name in SudoRmRfSettings.model_fields if name in config})
    )
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model
