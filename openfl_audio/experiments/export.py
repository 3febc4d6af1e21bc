"""The models of a run as folders that others can use, each with a card."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from openfl_audio.experiments.modes import Clients
from openfl_audio.files import replacing
from openfl_audio.training.adapters import has_adapter, has_residual, merge_adapter, save_adapter
from openfl_audio.training.export import CONFIG, SETTINGS, extend_config, write_card
from openfl_audio.training.history import Record, scores_by_round
from openfl_audio.training.run_settings import RunSettings
from openfl_audio.training.workload import Metrics, Workload

# What peft loads upon the base of a model that was trained by adapters; beside it lies the whole model.
ADAPTER = "adapter"


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
        save_model(clients.workload, model, clients.settings, folder)
        described = clients.workload.describe_model(clients.settings, clients.data)
        if described and (folder / CONFIG).exists():
            extend_config(folder, described)
        command = train_command(clients, mode, f"{folder.name}/{SETTINGS}")
        write_card(folder, clients.workload.name, kind, about, metrics[kind], settings, command)
    if clients.settings.best_epoch_path is not None:
        write_weights(models["best"], out / clients.settings.best_epoch_path)


def save_model(workload: Workload[Any], model: torch.nn.Module, settings: RunSettings, folder: Path) -> None:
    """Write `model` into `folder` as its workload does; adapters are merged, and lie in a folder of their own besides.

    Adapters with residuals belong to a base of their own, which is the merged model: they have no such folder.
    """
    if has_adapter(model):
        if not has_residual(model):
            save_adapter(model, folder / ADAPTER)
        model = merge_adapter(model)
    workload.save(model, settings, folder)


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


def link_scored_rounds(kept: Path, records: Sequence[Record], metric: str, out: Path) -> None:
    """Give the models of the rounds that are kept in the folder `kept` names with their scores, as links in `out`.

    Round 3, whose model is validated in round 4, is "accuracy_0.9612_round-3.safetensors" there. Links to rounds that
    are kept no more are removed.
    """
    names = {
        f"{metric}_{score:.4f}_round-{number - 1}.safetensors": kept / f"round-{number - 1}.safetensors"
        for number, score in scores_by_round(records, metric).items()
    }
    wanted = {name: path for name, path in names.items() if path.exists()}
    out.mkdir(exist_ok=True)
    for link in out.glob("*.safetensors"):
        if link.name not in wanted:
            link.unlink()
    for name, path in wanted.items():
        if not (out / name).is_symlink():
            (out / name).symlink_to(os.path.relpath(path, out))
