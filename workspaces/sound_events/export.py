"""A tagger as a folder: for `load_model`, and for Transformers' Auto classes."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from openfl_audio.files import replacing, write_json
from openfl_audio.training.export import add_code
from workspaces.sound_events.model import Tagger, create_tagger

CODE = ("model.py", "modeling_sound_events.py")
CLASSES = {
    "AutoConfig": "modeling_sound_events.SoundEventsConfig",
    "AutoModelForAudioClassification": "modeling_sound_events.SoundEventsForAudioClassification",
}
SAMPLE_RATE = 22_050


def save_tagger(model: nn.Module, recipe: Mapping[str, Any], folder: Path) -> None:
    """Write weights, configuration, feature extractor and code of a tagger into `folder`.

    `recipe` has the arguments of `create_tagger`. The names of the classes, `id2label`, and `features`, if they are not
    log-mel, are added with `openfl_audio.training.export.extend_config`.
    """
    # An envoy imports this module with its workload, and needs no Transformers.
    from transformers import Wav2Vec2FeatureExtractor

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / "model.safetensors", durable=False) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    write_json(folder / "config.json", {**recipe, "problem_type": "multi_label_classification"})
    add_code(folder, [Path(__file__).with_name(name) for name in CODE], "sound_event_tagger", CLASSES)
    Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=False, return_attention_mask=True).save_pretrained(
        folder
    )


def load_model(folder: str | Path) -> Tagger:
    """Load the tagger that `save_tagger` wrote. Raises FileNotFoundError if `folder` lacks one of its files."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = create_tagger(
        **{name: config[name] for name in inspect.signature(create_tagger).parameters if name in config}
    )
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
