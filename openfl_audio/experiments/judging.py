"""Every client judged: its score, what it gains over training alone, and the models of all clients at all clients."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from openfl_audio.errors import OpenFLAudioError
from openfl_audio.experiments.modes import EXPERIMENT, Clients, client_names
from openfl_audio.experiments.per_client import Scores, client_scores, defined, plot_per_client
from openfl_audio.files import write_json
from openfl_audio.node.adapter import FrameworkAdapterPlugin
from openfl_audio.node.local_state import read_local
from openfl_audio.training.plots import draw_points, draw_values
from openfl_audio.training.sites import gains_of, summarize_gain, summarize_scores

logger = logging.getLogger(__name__)

# Trains a client alone in a folder, and returns its models, as `kept_models` has them.
TrainAlone = Callable[[Clients, Path], Mapping[str, torch.nn.Module]]


def judged_clients(clients: Clients, mode: str) -> Clients:
    """Return the clients that a model is judged at: those that trained it, or all of them where it is of all data.

    The model of a client that trained alone is judged at all clients where the settings ask for the matrix.
    """
    settings = clients.settings
    if mode != "centralized" and not (mode == "individual" and settings.judge == "matrix"):
        return clients
    number = settings.clients
    if number == "natural":
        number = clients.workload.natural_clients(settings, clients.data)
    return replace(clients, number=number, trainers=client_names(number))


def judge_clients(
    clients: Clients, mode: str, models: Mapping[str, torch.nn.Module], device: str, out: Path, train_alone: TrainAlone
) -> dict[str, Any]:
    """Write per_client.json and its pictures into `out`, and return the summaries that result.json has.

    The best model is judged. Where tensors stay with their clients, the last one is, with those of each client, and
    OUT/sites/CLIENT is the model of that client. With `judge: gain` each client is trained alone as well.
    """
    judged = judged_clients(clients, mode)
    metric, direction = clients.workload.best(clients.settings)
    try:
        scores = score_clients(judged, models, lambda client: state_folder(mode, out, client), device)
    except OpenFLAudioError as error:
        if mode != "centralized":
            raise
        # It trains where the corpus cannot be divided among so many clients.
        logger.warning("the clients are not judged: %s", error)
        return {}
    write_json(out / "per_client.json", scores)
    if is_personal(judged):
        _export_personal(judged, mode, models["last"], out)
    summary = summarize_scores(defined(scores, metric), direction)
    if not summary or len(judged.trainers) < 2:
        return {}
    plot_per_client(scores, metric, summary, out / "per_client.png")
    clients.workload.plot_clients(scores, clients.settings, clients.data, out)
    if clients.settings.judge == "scores" or mode == "individual":
        return {metric: summary}
    return {metric: summary | {"gain": judge_gain(judged, scores, device, out, train_alone)}}


def judge_gain(clients: Clients, joined: Scores, device: str, out: Path, train_alone: TrainAlone) -> dict[str, float]:
    """Train each client alone below OUT/alone, compare, write gain.json and pictures, and return `summarize_gain`."""
    metric, direction = clients.workload.best(clients.settings)
    matrix = {}
    for name in clients.trainers:
        alone_in = out / "alone" / name
        models = train_alone(replace(clients, trainers=[name]), alone_in)
        judged = clients if clients.settings.judge == "matrix" else replace(clients, trainers=[name])
        # Everywhere with the tensors of the client that trained.
        state = partial(lambda folder, _: folder, state_folder("individual", alone_in, name))
        matrix[name] = values_of(score_clients(judged, models, state, device), metric)
    together = values_of(joined, metric)
    alone = {name: scores[name] for name, scores in matrix.items() if name in scores}
    gains = gains_of(together, alone, direction)
    summary = summarize_gain(gains)
    content = {"metric": metric, "joined": together, "alone": alone, "gain": gains, **summary}
    if clients.settings.judge == "matrix":
        content["matrix"] = matrix
        plot_matrix({**matrix, "joined": together}, metric, out / "matrix.png")
    write_json(out / "gain.json", content)
    sizes = {name: len(clients.open(name).get_dataset("train")) for name in together}
    plot_gain(together, sizes, metric, alone, out / "gain.png")
    return summary


def write_matrix(metric: str, names: Sequence[str], out: Path) -> None:
    """Write matrix.json and matrix.png of runs in which clients trained alone, each in a folder of its name."""
    scores = {name: json.loads((out / name / "per_client.json").read_text(encoding="utf-8")) for name in names}
    matrix = {name: values_of(each, metric) for name, each in scores.items()}
    write_json(out / "matrix.json", {"metric": metric, "matrix": matrix})
    plot_matrix(matrix, metric, out / "matrix.png")


def values_of(scores: Scores, metric: str) -> dict[str, float]:
    """Return a metric by client, of those for which it is defined."""
    found = {client: metrics.get(metric, math.nan) for client, metrics in scores.items()}
    return {client: value for client, value in found.items() if math.isfinite(value)}


def plot_gain(
    joined: Mapping[str, float], sizes: Mapping[str, float], metric: str, alone: Mapping[str, float], path: Path
) -> None:
    """Draw clients as points over their clips: hollow alone, full with the common model."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    draw_points(axes, joined, sizes, metric, alone)
    axes.set_title("hollow: trained alone; full: the common model")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_matrix(matrix: Mapping[str, Mapping[str, float]], metric: str, path: Path) -> None:
    """Draw the score of the model of each row at the clients of the columns."""
    columns = sorted({client for scores in matrix.values() for client in scores})
    values = np.array([[scores.get(client, np.nan) for client in columns] for scores in matrix.values()])
    figure, axes = plt.subplots(
        figsize=(2 + 0.7 * min(len(columns), 40), 2 + 0.5 * min(len(matrix), 40)), layout="constrained"
    )
    draw_values(axes, values, list(matrix), columns)
    axes.set(title=f"validation {metric}", xlabel="at the clips of", ylabel="model of")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def is_personal(clients: Clients) -> bool:
    """Tell whether tensors stay with each client."""
    return bool(clients.workload.local_tensors(clients.settings))


def score_clients(
    clients: Clients, models: Mapping[str, torch.nn.Module], state: Callable[[str], Path], device: str
) -> Scores:
    """Return the metrics of the best model by client; or of the last one, with what stayed with each client.

    `state` returns the folder in which it is kept. It goes with the last model: earlier ones are not kept.
    """
    if not is_personal(clients):
        return client_scores(clients, models["best"], device)
    scores: Scores = {}
    for name in clients.trainers:
        with local_tensors(models["last"], state(name)) as model:
            scores |= client_scores(replace(clients, trainers=[name]), model, device)
    return scores


@contextmanager
def local_tensors(model: torch.nn.Module, folder: Path) -> Iterator[torch.nn.Module]:
    """Let `model` have, within a block, the tensors that stayed with a client, whose state is in `folder`."""
    adapter = FrameworkAdapterPlugin()
    common = {name: tensor.copy() for name, tensor in adapter.get_tensor_dict(model).items()}
    # An optimizer's state may be there as well.
    own = {name: tensor for name, tensor in read_local(folder).items() if name in common}
    adapter.set_tensor_dict(model, common | own)
    try:
        yield model
    finally:
        adapter.set_tensor_dict(model, common)


def _export_personal(clients: Clients, mode: str, model: torch.nn.Module, out: Path) -> None:
    for name in clients.trainers:
        folder = out / "sites" / name
        folder.parent.mkdir(exist_ok=True)
        with local_tensors(model, state_folder(mode, out, name)) as personal:
            clients.workload.save(personal, clients.settings, folder)


def state_folder(mode: str, out: Path, client: str) -> Path:
    """Return where a run keeps what stays with a client: with its envoy, or in the folder of the simulation."""
    kept = out / "envoys" / client / EXPERIMENT / "state" if mode == "federated" else out / "clients"
    return kept / client
