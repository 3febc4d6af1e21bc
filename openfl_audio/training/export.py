"""Export of a model that others can use: the code that Transformers loads it with, and a card."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from openfl_audio.files import write_json, write_whole

CONFIG = "config.json"
CARD = "README.md"
SETTINGS = "settings.yaml"
PACKAGES = ("openfl-audio", "openfl", "torch", "torchaudio", "transformers", "numpy")


def add_code(folder: Path, modules: Sequence[Path], model_type: str, classes: Mapping[str, str]) -> None:
    """Copy into `folder` the modules that its model is made of, and name them in its config.json.

    Transformers then loads it with `trust_remote_code=True`, also where this project is not installed.

    Args:
        folder: an exported model with a config.json.
        modules: files that import each other relatively, and nothing else of this project.
        model_type: the name of the configuration's class.
        classes: "module.Class" by the name of an Auto class, such as AutoConfig; the last one is the model.
    """
    for module in modules:
        shutil.copyfile(module, folder / module.name)
    architecture = list(classes.values())[-1].rpartition(".")[2]
    extend_config(folder, {"model_type": model_type, "architectures": [architecture], "auto_map": dict(classes)})


def extend_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Add `values` to the config.json of an exported model, or replace those of the same name."""
    path = folder / CONFIG
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | dict(values))


def label_names(labels: Sequence[str]) -> dict[str, Any]:
    """Return what a configuration of Transformers says about the classes of a model."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def write_card(
    folder: Path,
    workload: str,
    kind: str,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, Any],
    command: str,
) -> None:
    """Write the card of an exported model, README.md, and its settings.yaml, into `folder`.

    Args:
        folder: the exported model.
        workload: name of the workload.
        kind: which of the models of a run it is, such as "best".
        facts: what is known of the training by name: data, clients, rounds and the like.
        scores: metrics by split.
        settings: all settings of the run, as they go into a YAML file.
        command: a shell command that trains the model again.
    """
    write_whole(folder / SETTINGS, yaml.safe_dump(dict(settings), sort_keys=False).encode(), durable=False)
    metrics = list(dict.fromkeys(name for values in scores.values() for name in values))
    rows = [[split, *(_number(values.get(name)) for name in metrics)] for split, values in scores.items()]
    parts = [
        "---\nlibrary_name: transformers\ntags: [openfl-audio, federated-learning, audio]\n---",
        f"# {workload}, the {kind} model of a run",
        f"Trained with [openfl-audio]: {_use(folder)}",
        _table(["", ""], [[name, str(value)] for name, value in facts.items()]),
        "## Scores",
        _table(["split", *metrics], rows) if rows else "There are none.",
        "## Training it again",
        f"All settings are in `{SETTINGS}`.",
        f"```sh\n{command}\n```",
        "## Versions",
        _table(["package", "version"], [["Python", platform.python_version()], *_versions()]),
        "[openfl-audio]: https://pypi.org/project/openfl-audio/",
    ]
    write_whole(folder / CARD, ("\n\n".join(parts) + "\n").encode(), durable=False)


def _use(folder: Path) -> str:
    """Return a sentence on what loads the model in `folder`."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    [name] = config.get("architectures") or [""]
    if name.endswith(("ForCTC", "ForConditionalGeneration", "Classification")):
        return "`openfl-audio predict FOLDER FILE.wav` hears a recording with it."
    if name.endswith("Enhancement"):
        return "`openfl-audio enhance FOLDER IN.wav OUT.wav` takes noise out of a recording."
    return f"its weights are those of Transformers' {name}." if name else "the workload that trained it reads it."


def _versions() -> list[list[str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append([package, version(package)])
        except PackageNotFoundError:
            continue
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
