"""Sound event tagging, one client per uploader."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field, field_validator

from openfl_audio.config import find_function
from openfl_audio.protocol.plan import Direction
from openfl_audio.training.export import label_names
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.fsd50k import Fsd50kShardDescriptor
from shard_descriptors.fsd50k.store import open_store
from workspaces.sound_events import tasks
from workspaces.sound_events.data import Patches, SoundEventData, check_classes
from workspaces.sound_events.export import save_tagger
from workspaces.sound_events.loss import find_loss
from workspaces.sound_events.model import (
    NORMALISATION_TENSORS,
    Architecture,
    Normalisation,
    Tagger,
    create_tagger,
)

AlsoBest = Literal["loss", "pr_auc_macro", "mAP", "d_prime", "d_prime_mean", "lwlrap"]
SHARD_DESCRIPTOR = "shard_descriptors.fsd50k.Fsd50kShardDescriptor"


class ModelSettings(Group):
    """Arguments of `create_tagger`."""

    architecture: Architecture = Field(description="network of the tagger")
    classes: int | None = Field(default=None, ge=1, description="number of classes; by default those of the corpus")
    normalisation: Normalisation = Field(
        default="group",
        description="by groups of channels, by the batch, or by the batch with scales of a client's own (FedBN)",
    )
    width: float = Field(default=1.0, gt=0, le=1, multiple_of=0.25, description="share of the channels and units")


class DataSettings(Group):
    """The uploaders that are clients, and what they validate on: see `Fsd50kShardDescriptor`."""

    uploader_min: int = Field(default=0, ge=0, description="train clips that an uploader must have to train")
    split: Literal["official", "uploader"] = Field(
        default="official", description="validation as published, or of whole uploaders"
    )
    uploader_name: str | list[str] | None = Field(default=None, description="uploaders whose clips train")
    transforms: str | None = Field(
        default=None, description="dotted name of a function that each patch that trains goes through"
    )

    @field_validator("transforms")
    @classmethod
    def check_transforms(cls, transforms: str | None) -> str | None:
        if transforms is not None:
            find_function(transforms)
        return transforms


class SoundEventsSettings(RunSettings):
    """Settings of a run.

    What Green & Plumbley (arXiv 2105.08550) call C, E, B and lr are `fraction`, `local_epochs`, `batch_size` and
    `optimizer.learning_rate` here. A `loss` by its dotted name, such as
    torch.nn.functional.multilabel_soft_margin_loss, must be installed on every node. The validation's is binary
    cross-entropy in any case.
    """

    model: ModelSettings = Field(description="model that is trained")
    data: DataSettings = Field(default=DataSettings(), description="division of the corpus among clients")
    loss: str = Field(
        default="binary_cross_entropy",
        description="loss of training: one of loss.py, or the dotted name of a function of logits and labels",
    )
    halve_rate_after: int | None = Field(
        default=None,
        ge=1,
        description="validations in a row without a better PR-AUC after which the learning rate is halved, each time",
    )
    also_best: tuple[AlsoBest, ...] = Field(
        default=(), description="metrics whose best models are kept and exported too"
    )

    @field_validator("loss")
    @classmethod
    def check_loss(cls, loss: str) -> str:
        find_loss(loss)
        return loss


class SoundEvents(Workload[SoundEventsSettings]):
    """Sound event tagging; the best model has the highest PR-AUC, for which one client has to validate."""

    config_class = SoundEventsSettings
    corpus = Fsd50kShardDescriptor.corpus

    def model(self, config: SoundEventsSettings) -> Callable[[], Tagger]:
        return partial(create_tagger, **config.model.model_dump(), seed=config.seed)

    def tasks(self, config: SoundEventsSettings) -> TaskInterface:
        training = tasks.TrainingSettings(config.local_epochs, config.batch_size, config.seed, find_loss(config.loss))
        return register_tasks(tasks.train_round, tasks.validate_clips, {"settings": training})

    def data(self, config: SoundEventsSettings) -> DataInterface:
        return SoundEventData(config.model.classes)

    def best(self, config: SoundEventsSettings) -> tuple[str, Direction]:
        return "pr_auc", "max"

    def also_best(self, config: SoundEventsSettings) -> Mapping[str, Direction]:
        return {metric: "min" if metric == "loss" else "max" for metric in config.also_best}

    def start_arguments(self, config: SoundEventsSettings) -> dict[str, Any]:
        return super().start_arguments(config) | {"halve_rate_after": config.halve_rate_after}

    def metric_bounds(self, config: SoundEventsSettings) -> Mapping[str, tuple[float, float]]:
        return {"pr_auc": (0, 1)}

    def mean_over(self, config: SoundEventsSettings) -> Mapping[str, str | None]:
        return tasks.MEAN_OVER

    def local_tensors(self, config: SoundEventsSettings) -> Sequence[str]:
        return [*config.local_tensors, *[NORMALISATION_TENSORS] * (config.model.normalisation == "fedbn")]

    def complete(self, config: SoundEventsSettings, data: Path) -> SoundEventsSettings:
        """Return settings with as many classes as the corpus has, where they do not say how many."""
        if config.model.classes is not None:
            return config
        model = config.model.model_copy(update={"classes": len(open_store(data).classes)})
        return config.model_copy(update={"model": model})

    def shard(self, config: SoundEventsSettings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {
                "data_path": str(data),
                "rank_worldsize": f"{rank},{world_size}",
                "seed": config.seed,
                **config.data.model_dump(),
            },
        }

    def natural_clients(self, config: SoundEventsSettings, data: Path) -> int:
        division = config.data.model_dump(exclude={"transforms"})
        return Fsd50kShardDescriptor.natural_clients(data, **division, seed=config.seed)

    def evaluate(self, model: Tagger, config: SoundEventsSettings, data: Path, device: str) -> Metrics:
        """Return metrics on all validation clips and on all test clips, none of which trains anywhere."""
        descriptor = Fsd50kShardDescriptor(data, **config.data.model_dump(), seed=config.seed)
        metrics = {}
        for split in ("validation", "test"):
            dataset = descriptor.get_dataset(split)
            check_classes(config.model.classes, dataset)
            metrics[split] = tasks.validate_clips(model, Patches(dataset), device)
        return metrics

    def save(self, model: Tagger, config: SoundEventsSettings, folder: str | Path) -> None:
        save_tagger(model, config.model.model_dump(), Path(folder))

    def describe_model(self, config: SoundEventsSettings, data: Path) -> Mapping[str, Any]:
        store = open_store(data)
        return {**label_names(store.classes), "features": store.features}

    def plot(
        self, records: Sequence[Record], config: SoundEventsSettings, data: Path, clients: int, part: str, out: Path
    ) -> None:
        """Draw scores.png, and the clips that train by class, by uploader and by both."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.sound_events import plots

        plots.plot_scores(to_frame(records), out / "scores.png")
        trained_on = Fsd50kShardDescriptor(data, rank_worldsize=part, **config.data.model_dump(), seed=config.seed)
        train = trained_on.get_dataset("train")
        counts = plots.count_clips(train.clip_labels, train.uploaders, train.classes)
        plots.plot_clips_per_class(counts, out / "clips_per_class.png")
        plots.plot_clips_per_uploader(train.uploaders, config.data.uploader_min, out / "clips_per_uploader.png")
        plots.plot_class_by_uploader(counts, out / "class_by_uploader.png")
