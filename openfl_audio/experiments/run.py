"""One experiment in one mode: from settings to a folder with its result, OUT of `openfl-audio train`.

    run.json             the workload, the mode, the data and the settings that the folder belongs to
    result.json          metrics of each kept model by split, rounds, seconds, bytes, seed, settings, versions
    history.jsonl        one record a round
    model/               the best model; models of other kinds are in such as model-last/, each with a card
    per_client.json      metrics of the model at each client's validation clips
    *.png                pictures of the workload, of the clients and of the comparison between them
    checkpoints/         models of the last `keep` rounds, with the score in the name
    sites/CLIENT/        the model of each client, where parts of it stay there
    gain.json            with `judge: gain`, each client trained alone as well; the runs are in alone/
    tensorboard/         the history once more, and tracked.json with a tracker
    experiment.json, checkpoint.safetensors, round-N.safetensors    of a run in this process, to resume it
    certificates/, settings/, logs/, director/, envoys/             of a federated run: all that its processes have
    clients/             the state that stays with each client of a run in this process

A run with several clients that train alone has a folder like this for each, and matrix.json with `judge: matrix`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from openfl_audio import files
from openfl_audio.errors import FolderInUseError, SettingsError
from openfl_audio.experiments.export import export_models, link_scored_rounds
from openfl_audio.experiments.judging import judge_clients, write_matrix
from openfl_audio.experiments.modes import EVALUATOR, EXPERIMENT, Clients, choose_clients, federate, simulate
from openfl_audio.experiments.progress import OnRound, RunProgress
from openfl_audio.experiments.tracking import Watchers
from openfl_audio.files import read_json_lines, write_json_lines, write_result
from openfl_audio.protocol.plan import TRAIN
from openfl_audio.training.history import Record
from openfl_audio.training.run_settings import RunSettings
from openfl_audio.training.workload import Workload


def run(
    workload: Workload[Any],
    settings: RunSettings,
    mode: str,
    data: Path,
    out: Path,
    client_ids: Sequence[int] = (0,),
    workers: int = 1,
    ray_address: str | None = None,
    gpus_per_client: float = 0.0,
    on_round: OnRound = lambda record: None,
) -> dict[str, Any]:
    """Run the experiment into `out`, or go on with it, and return what `result.json` holds.

    `on_round` gets the record of every round, also of those that an earlier run had.

    Raises SettingsError if `out` has been used for anything else.
    """
    out, data = out.resolve(), data.resolve() if data.exists() else data
    settings = workload.complete(settings, data)
    experiments = choose_clients(workload, settings, data, mode, client_ids)
    # A corpus that cannot be read should not claim the folder.
    experiments[0].open(EVALUATOR)
    alone = [clients.trainers[0] for clients in experiments] if mode == "individual" else None
    values = settings.model_dump(mode="json")
    add_new_settings(out, workload.config_class)
    claim(out, {"workspace": workload.name, "mode": mode, "alone": alone, "data": str(data), "settings": values})
    results = {}
    for clients in experiments:
        folder = out if len(experiments) == 1 else out / clients.trainers[0]
        result_file = folder / "result.json"
        if result_file.exists():
            for record in read_json_lines(folder / "history.jsonl"):
                on_round(record)
        else:
            _run_one(clients, mode, folder, workers, ray_address, gpus_per_client, on_round)
        results[clients.trainers[0]] = json.loads(result_file.read_text())
    if len(experiments) == 1:
        return results[experiments[0].trainers[0]]
    metrics = {client: result["metrics"] for client, result in results.items()}
    if settings.judge == "matrix":
        write_matrix(workload.best(settings)[0], list(results), out)
    write_result(out / "result.json", workspace=workload.name, mode=mode, clients=metrics, seed=settings.seed)
    return json.loads((out / "result.json").read_text())


def preprocess(
    workload: Workload[Any], settings: RunSettings, mode: str, data: Path, client_ids: Sequence[int] = (0,)
) -> int:
    """Compute what a run of this kind would compute first and keep on this machine; return of how many clips.

    Raises SettingsError if the workload keeps nothing.
    """
    settings = workload.complete(settings, data)
    experiments = choose_clients(workload, settings, data, mode, client_ids)
    shards = (clients.open(name) for clients in experiments for name in clients.names)
    return workload.preprocess(settings, shards, "cuda" if torch.cuda.is_available() else "cpu")


def _run_one(
    clients: Clients,
    mode: str,
    out: Path,
    workers: int,
    ray_address: str | None,
    gpus_per_client: float,
    on_round: OnRound,
) -> None:
    settings, workload = clients.settings, clients.workload
    out.mkdir(parents=True, exist_ok=True)
    name = f"{workload.name}, {mode}"
    with Watchers(settings, f"{name}, {out.name}", out) as watchers, RunProgress(name, settings.rounds) as progress:
        kept = out / "director" / EXPERIMENT if mode == "federated" else out
        metric, _ = workload.best(settings)

        def name_kept_rounds(record: Record) -> None:
            link_scored_rounds(kept, progress.records, metric, out / "checkpoints")

        progress.watch(on_round, watchers.show, *([name_kept_rounds] if settings.keep else []))
        if mode == "federated":
            models = federate(clients, out, progress)
            write_json_lines(out / "history.jsonl", progress.records)
        else:
            models = simulate(clients, out, progress, workers, ray_address, gpus_per_client)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    metrics = {name: workload.evaluate(model, settings, clients.data, device) for name, model in models.items()}
    workload.plot(progress.records, settings, clients.data, len(clients.trainers), clients.trained_part, out)
    records = progress.records
    rounds = sum(TRAIN in record["metrics"] for record in records)
    seconds = round(sum(record["seconds"] for record in records), 2)
    sent = {key: sum(record[f"bytes_{key}"] for record in records) for key in ("up", "down")}
    facts = {"rounds": rounds, "seconds": seconds, "MB sent": round(sent["up"] / 1e6, 1), "seed": settings.seed}
    per_client = judge_clients(clients, mode, models, device, out, _train_alone)
    export_models(models, metrics, clients, mode, facts, out)
    write_result(
        out / "result.json",
        workspace=workload.name,
        mode=mode,
        clients=len(clients.trainers),
        metrics=metrics,
        per_client=per_client,
        rounds=rounds,
        seconds=seconds,
        bytes=sent,
        privacy=records[-1].get("privacy"),
        seed=settings.seed,
        settings=settings.model_dump(mode="json"),
    )


def _train_alone(clients: Clients, out: Path) -> dict[str, torch.nn.Module]:
    """Train one client alone, in this process, into `out`, or resume it there; return its models."""
    description = f"{clients.workload.name}, {clients.trainers[0]} alone"
    with RunProgress(description, clients.settings.rounds) as progress:
        return simulate(clients, out, progress, 1, None, 0.0)


def add_new_settings(out: Path, config_class: type[RunSettings]) -> None:
    """Give the run of an earlier version in `out` the defaults of settings that it did not have: it did as they say."""
    path = out / "run.json"
    if not path.exists():
        return
    run = files.read_claim(path)
    try:
        settings = config_class.model_validate(run.get("settings")).model_dump(mode="json")
    except ValidationError:
        return  # `claim` names what is different
    if settings != run["settings"]:
        files.write_claim(path, run | {"settings": settings})


def claim(out: Path, run: dict[str, Any]) -> None:
    """Note in `out` what it is for. Raises SettingsError, naming the first difference, if it is for something else."""
    path, history = out / "run.json", out / "history.jsonl"
    if path.exists() and history.exists() and not history.stat().st_size:
        # A run that failed before its first round is over has nothing to lose: the settings may be mended.
        (out / "experiment.json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    elif not path.exists() and out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out} is not empty, and no earlier run: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        files.claim(path, run, "a run", "choose another --out")
    except FolderInUseError as error:
        raise SettingsError(str(error)) from None
