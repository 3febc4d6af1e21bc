"""The history of an experiment for an experiment tracker, as a run in a folder: nothing is sent anywhere."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from openfl_audio.director.tensorboard import scalars
from openfl_audio.errors import SettingsError
from openfl_audio.training.history import Record


def to_mlflow(name: str, settings: dict[str, str], records: Iterable[Record], out: Path) -> Path:
    """Write a run of MLflow into the database `out`/mlflow.db, and return that file. Raises SettingsError."""
    mlflow = _load("mlflow")
    path = out / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.set_experiment("openfl-audio")
    with mlflow.start_run(run_name=name):
        for key, value in settings.items():
            mlflow.log_param(_mlflow_name(key), value[:500])
        for record in records:
            metrics = {_mlflow_name(tag): value for tag, value in scalars(record)}
            mlflow.log_metrics(metrics, step=record["round"])
    return path


def to_wandb(name: str, settings: dict[str, str], records: Iterable[Record], out: Path) -> Path:
    """Write an offline run of Weights & Biases into `out`/wandb, which `wandb sync` may send. Raises SettingsError."""
    wandb = _load("wandb")
    run = wandb.init(project="openfl-audio", name=name, config=settings, dir=str(out), mode="offline")
    for record in records:
        run.log(dict(scalars(record)), step=record["round"])
    run.finish()
    return out / "wandb"


TRACKERS: dict[str, Callable[[str, dict[str, str], Iterable[Record], Path], Path]] = {
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}


def _load(name: str) -> Any:
    # Both would ask their makers for news, or tell them of themselves.
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", WANDB_MODE="offline", WANDB_SILENT="true")
    try:
        return __import__(name)
    except ImportError:
        raise SettingsError(f"--to {name}: it is not installed: pip install 'openfl-audio[{name}]'") from None


def _mlflow_name(name: str) -> str:
    """Return a name of letters that MLflow takes."""
    return "".join(character if character.isalnum() or character in "_-. /" else "_" for character in name)[:250]
