"""Speech recognition as an experiment: what `scripts/train.py` needs to run it in any of the four modes."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from openfl_audio.notebook.interactive_api import ModelInterface, TaskInterface
from openfl_audio.notebook.live_view import to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from workspaces.speech_recognition import tasks
from workspaces.speech_recognition.data import Clips, SpeechData
from workspaces.speech_recognition.model import Recognizer, create_recognizer, save_recognizer

SHARD_DESCRIPTOR = "shard_descriptors.librispeech.LibriSpeechShardDescriptor"


class ModelSettings(Group):
    """See `create_recognizer`: `upstream` names a trained HuBERT, `config` a file for a random start."""

    upstream: str | None = None
    config: str | None = None
    frozen: bool = False

    @field_validator("upstream", "config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Whoever trains has a working directory of its own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class Settings(RunSettings):
    """`warmup` is the share of the steps of all rounds in which the learning rate rises; then it falls to 0."""

    model: ModelSettings
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip_grad_norm: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def check_model(self) -> "Settings":
        if (self.model.upstream is None) == (self.model.config is None):
            raise ValueError("model needs either upstream or config")
        return self


def arguments(settings: Settings) -> dict[str, Any]:
    """Of `FLExperiment.start` and `Simulation.start`: model, tasks and data."""
    model = settings.model
    recipe = partial(create_recognizer, model.upstream, config=model.config, frozen=model.frozen, seed=settings.seed)
    task_keeper = TaskInterface()
    task_keeper.register_fl_task(
        model="model", data_loader="clips", device="device", optimizer="optimizer", round_num="round_number"
    )(_train)
    task_keeper.add_kwargs(settings=_training(settings))(_train)
    task_keeper.register_fl_task(model="model", data_loader="clips", device="device")(_validate)
    return {
        "model_provider": ModelInterface(recipe, settings.optimizer.recipe()),
        "task_keeper": task_keeper,
        "data_loader": SpeechData(),
        "best": ("wer", "min"),
        "corpus": LibriSpeechShardDescriptor.corpus,
    }


def shard(settings: Settings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
    """The shard of client `rank`, from 1, of `world_size`, as an envoy's settings name it."""
    return {
        "template": SHARD_DESCRIPTOR,
        "params": {"data_path": str(data), "rank_worldsize": f"{rank},{world_size}"},
    }


def count_natural_clients(settings: Settings, data: Path) -> int:
    return LibriSpeechShardDescriptor.natural_clients(data)


def evaluate(model: Recognizer, settings: Settings, data: Path, device: str) -> dict[str, dict[str, float]]:
    """Metrics of `model` on the validation clips of all clients, on dev-clean and on test-clean, where they have
    transcripts."""
    descriptor = LibriSpeechShardDescriptor(data)
    splits = {split: Clips(descriptor.get_dataset(split)) for split in ("validation", "dev", "test")}
    return {split: tasks.validate_clips(model, clips, device) for split, clips in splits.items() if len(clips)}


def save(model: Recognizer, settings: Settings, folder: Path) -> None:
    save_recognizer(model, folder)


def plot(records: list[dict[str, Any]], settings: Settings, data: Path, clients: int, part: str, out: Path) -> None:
    """error_rates.png"""
    # On an envoy nobody draws: it is spared the time and the memory.
    from workspaces.speech_recognition.plots import plot_error_rates

    plot_error_rates(to_frame(records), out / "error_rates.png")


def _training(settings: Settings) -> tasks.TrainingSettings:
    return tasks.TrainingSettings(
        rounds=settings.rounds,
        learning_rate=settings.optimizer.learning_rate,
        local_epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        clip_grad_norm=settings.clip_grad_norm,
    )


def _train(model, clips, device, optimizer, round_number, settings):
    return tasks.train_round(model, clips, optimizer, device, round_number, settings)


def _validate(model, clips, device):
    return tasks.validate_clips(model, clips, device)
