"""Sound event tagging as an experiment: what `scripts/train.py` needs to run it in any of the four modes."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from openfl_audio.notebook.interactive_api import ModelInterface, TaskInterface
from openfl_audio.notebook.live_view import to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from shard_descriptors.fsd50k import Fsd50kShardDescriptor
from shard_descriptors.mel_store import open_store
from workspaces.sound_events import tasks
from workspaces.sound_events.data import Patches, SoundEventData, check_classes
from workspaces.sound_events.model import (
    NORMALISATION_TENSORS,
    Architecture,
    Normalisation,
    Tagger,
    create_tagger,
    save_tagger,
)

SHARD_DESCRIPTOR = "shard_descriptors.fsd50k.Fsd50kShardDescriptor"


class ModelSettings(Group):
    """Arguments of `create_tagger`; without `classes`, `complete` takes those of the corpus."""

    architecture: Architecture
    classes: int | None = Field(default=None, ge=1)
    normalisation: Normalisation = "group"
    width: float = Field(default=1.0, gt=0, le=1, multiple_of=0.25)


class DataSettings(Group):
    """Which uploaders are clients, and what they validate on: see `Fsd50kShardDescriptor`."""

    uploader_min: int = Field(default=0, ge=0)
    split: Literal["official", "uploader"] = "official"


class Settings(RunSettings):
    """What Green & Plumbley (arXiv 2105.08550) call C, E, B and lr are `fraction`, `local_epochs`, `batch_size` and
    `optimizer.learning_rate` here."""

    model: ModelSettings
    data: DataSettings = DataSettings()


def complete(settings: Settings, data: Path) -> Settings:
    """The settings with as many classes as the corpus has, where they do not say how many."""
    if settings.model.classes is not None:
        return settings
    model = settings.model.model_copy(update={"classes": len(open_store(data).classes)})
    return settings.model_copy(update={"model": model})


def arguments(settings: Settings) -> dict[str, Any]:
    """Of `FLExperiment.start` and `Simulation.start`: model, tasks and data."""
    task_keeper = TaskInterface()
    task_keeper.register_fl_task(
        model="model", data_loader="patches", device="device", optimizer="optimizer", round_num="round_number"
    )(_train)
    training = tasks.TrainingSettings(settings.local_epochs, settings.batch_size, settings.seed)
    task_keeper.add_kwargs(settings=training)(_train)
    task_keeper.register_fl_task(model="model", data_loader="patches", device="device")(_validate)
    return {
        "model_provider": ModelInterface(
            partial(create_tagger, **settings.model.model_dump(), seed=settings.seed),
            settings.optimizer.recipe(),
            local_tensors=[NORMALISATION_TENSORS] if settings.model.normalisation == "fedbn" else [],
        ),
        "task_keeper": task_keeper,
        "data_loader": SoundEventData(settings.model.classes),
        "best": ("pr_auc", "max"),
        "metric_bounds": {"pr_auc": (0, 1)},
        "corpus": Fsd50kShardDescriptor.corpus,
    }


def shard(settings: Settings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
    """The shard of client `rank`, from 1, of `world_size`, as an envoy's settings name it."""
    return {
        "template": SHARD_DESCRIPTOR,
        "params": {
            "data_path": str(data),
            "rank_worldsize": f"{rank},{world_size}",
            "seed": settings.seed,
            **settings.data.model_dump(),
        },
    }


def count_natural_clients(settings: Settings, data: Path) -> int:
    return Fsd50kShardDescriptor.natural_clients(data, **settings.data.model_dump(), seed=settings.seed)


def evaluate(model: Tagger, settings: Settings, data: Path, device: str) -> dict[str, dict[str, float]]:
    """Metrics of `model` on all validation clips, and on all test clips, none of which trains anywhere."""
    descriptor = Fsd50kShardDescriptor(data, **settings.data.model_dump(), seed=settings.seed)
    metrics = {}
    for split in ("validation", "test"):
        dataset = descriptor.get_dataset(split)
        check_classes(settings.model.classes, dataset)
        metrics[split] = tasks.validate_clips(model, Patches(dataset), device)
    return metrics


def save(model: Tagger, settings: Settings, folder: Path) -> None:
    save_tagger(model, settings.model.model_dump(), folder)


def plot(records: list[dict[str, Any]], settings: Settings, data: Path, clients: int, part: str, out: Path) -> None:
    """scores.png, and of the clips that train clips_per_class.png, clips_per_uploader.png, class_by_uploader.png."""
    # On an envoy nobody draws: it is spared the time and the memory.
    from workspaces.sound_events import plots

    plots.plot_scores(to_frame(records), out / "scores.png")
    trained_on = Fsd50kShardDescriptor(data, rank_worldsize=part, **settings.data.model_dump(), seed=settings.seed)
    train = trained_on.get_dataset("train")
    counts = plots.count_clips(train.clip_labels, train.uploaders, train.classes)
    plots.plot_clips_per_class(counts, out / "clips_per_class.png")
    plots.plot_clips_per_uploader(train.uploaders, settings.data.uploader_min, out / "clips_per_uploader.png")
    plots.plot_class_by_uploader(counts, out / "class_by_uploader.png")


def _train(model, patches, device, optimizer, round_number, settings):
    return tasks.train_round(model, patches, optimizer, device, round_number, settings)


def _validate(model, patches, device):
    return tasks.validate_clips(model, patches, device)
