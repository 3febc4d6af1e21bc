"""The models of a run as folders that others can use, each with a card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from openfl_audio.experiments.modes import Clients
from openfl_audio.files import replacing
from openfl_audio.training.export import CONFIG, SETTINGS, extend_config, write_card
from openfl_audio.training.workload import Metrics


def model_folder(out: Path, kind: str) -> Path:
    """Return where a model of a run is exported to: model/ for the best one, such as model-last/ for others."""
    return out / ("model" if kind == "best" else f"model-{kind}")


def export_models(
    models: Mapping[str, torch.nn.Module],
    metrics: Mapping[str, Metrics],
    clients: Clients,
    mode: str,
    facts: Mapping[str, Any],
    out: Path,
) -> None:
    """Write each of `models`, by its kind such as "best", into a folder of its own in `out`, with its card.

    Args:
        models: as `kept_models` has them.
        metrics: of each model, by split.
        clients: those that trained.
        mode: the mode of the run.
        facts: of the training, by name, for the cards.
        out: the folder of the run.
    """
    settings = clients.settings.model_dump(mode="json")
    about = {"data": clients.data.name, "mode": mode, "clients": _describe(clients), **facts}
    for kind, model in models.items():
        folder = model_folder(out, kind)
        clients.workload.save(model, clients.settings, folder)
        described = clients.workload.describe_model(clients.settings, clients.data)
        if described and (folder / CONFIG).exists():
            extend_config(folder, described)
        command = train_command(clients, mode, f"{folder.name}/{SETTINGS}")
        write_card(folder, clients.workload.name, kind, about, metrics[kind], settings, command)
    if clients.settings.best_epoch_path is not None:
        write_weights(models["best"], out / clients.settings.best_epoch_path)


def write_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the weights of `model` into a file: a state dict of PyTorch where it ends in .pt, else safetensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary:
        if path.suffix == ".pt":
            torch.save(state, temporary)
        else:
            temporary.write_bytes(save(state, {"format": "pt"}))


def train_command(clients: Clients, mode: str, settings: str) -> str:
    """Return the call of openfl-audio train that a run was, with all `settings` from a file."""
    alone = f" --client-ids {_numbers(clients.trainers)[0]}" if mode == "individual" else ""
    return (
        f"openfl-audio train {clients.workload.name} --mode {mode} --config {settings}{alone} \\\n"
        f"    --data {clients.data.name} --out OUT"
    )


def _numbers(trainers: Sequence[str]) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in trainers]


def _describe(clients: Clients) -> str:
    if len(clients.trainers) == clients.number:
        return str(clients.number)
    return f"number {_numbers(clients.trainers)[0]} of {clients.number}, from 0"
