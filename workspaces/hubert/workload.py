"""HuBERT: pretraining on targets of k-means, or distillation from a teacher."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field, field_validator, model_validator

from openfl_audio.protocol.plan import Direction
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, OptimizerSettings, RunSettings
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from workspaces.hubert import tasks
from workspaces.hubert.data import Clips, HubertData
from workspaces.hubert.distillation import Distillation, compare_size_and_speed, create_student, load_teacher
from workspaces.hubert.loss import MaskedPrediction, Objective
from workspaces.hubert.masking import MaskSettings
from workspaces.hubert.model import Hubert, create_hubert, save_model

SHARD_DESCRIPTOR = "shard_descriptors.librispeech.LibriSpeechShardDescriptor"


Share = Annotated[float, Field(ge=0, lt=1)]


class AdamSettings(OptimizerSettings):
    """`betas` and `epsilon` are those of Adam and AdamW; fairseq's for HuBERT by default."""

    betas: tuple[Share, Share] = (0.9, 0.98)
    epsilon: float = Field(default=1e-6, gt=0)

    def recipe(self) -> Callable[..., torch.optim.Optimizer]:
        recipe = super().recipe()
        return recipe if self.name == "sgd" else partial(recipe, betas=self.betas, eps=self.epsilon)


class ModelSettings(Group):
    """`config` is a file in `configs/` (or a path); `clusters` and `final_dim` are of pretraining: a student has its
    teacher's. `feature_grad_mult` scales the gradients of the convolutions."""

    config: str
    clusters: int = Field(default=504, ge=2)
    final_dim: int = Field(default=256, ge=1)
    feature_grad_mult: float = Field(default=0.1, gt=0, le=1)
    gradient_checkpointing: bool = False


class DataSettings(Group):
    """`targets` names a folder that scripts/make_hubert_targets.py wrote; distillation has none."""

    targets: str | None = None


class DistillationSettings(Group):
    """See `Distillation`. `teacher` is the folder of a model, such as model/ of a run, or a hub name."""

    teacher: str
    layers: tuple[int, ...]
    temperature: float = Field(default=2.0, gt=0)
    alpha: float = Field(default=0.5, ge=0)
    beta: float = Field(default=1.0, ge=0)

    @field_validator("teacher")
    @classmethod
    def resolve(cls, teacher: str) -> str:
        # Whoever trains has a working directory of its own.
        return str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher


class Settings(RunSettings):
    """A batch has at most `max_samples_per_batch`, padding included, and `batch_size` clips; of longer ones than
    `max_clip_samples` a part is cut out at random. "auto" takes what the free memory allows.

    `warmup` is the share of the steps of all rounds in which the learning rate rises; then it falls to 0. `autocast` is
    the precision of training (`precision` that of what travels); with `proximal_mu` it is FedProx.
    """

    objective: Literal["pretraining", "distillation"] = "pretraining"
    optimizer: AdamSettings
    model: ModelSettings
    data: DataSettings = DataSettings()
    mask: MaskSettings = MaskSettings()
    distillation: DistillationSettings | None = None
    batch_size: int = Field(default=64, ge=1)
    max_samples_per_batch: int | Literal["auto"] = 1_400_000
    max_clip_samples: int = Field(default=250_000, ge=400)
    accumulate: int = Field(default=1, ge=1)
    warmup: float = Field(default=0.08, ge=0, lt=1)
    unmasked_weight: float = Field(default=0.0, ge=0)
    feature_penalty: float = Field(default=10.0, ge=0)
    clip_grad_norm: float = Field(default=10.0, gt=0)
    proximal_mu: float = Field(default=0.0, ge=0)
    autocast: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def check_objective(self) -> "Settings":
        if self.objective == "pretraining" and self.data.targets is None:
            raise ValueError("pretraining needs data.targets, the name of a folder of targets")
        if (self.objective == "distillation") != (self.distillation is not None):
            raise ValueError("the group distillation goes with objective distillation, and with no other")
        if self.max_samples_per_batch != "auto" and self.max_samples_per_batch < self.max_clip_samples:
            raise ValueError(
                f"max_samples_per_batch is {self.max_samples_per_batch}: should have room for one clip of "
                f"max_clip_samples, {self.max_clip_samples}"
            )
        return self

    @property
    def pretrains(self) -> bool:
        return self.objective == "pretraining"

    @property
    def clusters(self) -> int | None:
        """Of the targets; None without."""
        return self.model.clusters if self.pretrains else None


def _objective(settings: Settings) -> Objective:
    if settings.distillation is not None:
        return Distillation(**settings.distillation.model_dump())
    return MaskedPrediction(settings.unmasked_weight, settings.feature_penalty)


def _training(settings: Settings) -> tasks.TrainingSettings:
    return tasks.TrainingSettings(
        rounds=settings.rounds,
        learning_rate=settings.optimizer.learning_rate,
        local_epochs=settings.local_epochs,
        max_samples=settings.max_samples_per_batch,
        max_clip_samples=settings.max_clip_samples,
        max_clips=settings.batch_size,
        accumulate=settings.accumulate,
        warmup=settings.warmup,
        clip_grad_norm=settings.clip_grad_norm,
        proximal_mu=settings.proximal_mu,
        autocast=settings.autocast,
        gradient_checkpointing=settings.model.gradient_checkpointing,
        feature_grad_mult=settings.model.feature_grad_mult,
    )


def validate(model, clips, device, objective):
    if isinstance(objective, MaskedPrediction):
        return tasks.validate_clips(model, clips, device)
    return tasks.validate_objective(model, clips, device, objective)


class HubertTraining(Workload[Settings]):
    config_class = Settings
    corpus = LibriSpeechShardDescriptor.corpus

    def model(self, config: Settings) -> Callable[[], Hubert]:
        model, distillation = config.model, config.distillation
        if distillation is None:
            return partial(create_hubert, model.config, model.clusters, model.final_dim, config.seed)
        return partial(create_student, model.config, distillation.teacher, distillation.layers, config.seed)

    def tasks(self, config: Settings) -> TaskInterface:
        objective = {"objective": _objective(config)}
        return register_tasks(tasks.train_round, validate, {"settings": _training(config), **objective}, objective)

    def data(self, config: Settings) -> DataInterface:
        return HubertData(config.mask if config.pretrains else None, config.clusters)

    def best(self, config: Settings) -> tuple[str, Direction]:
        return ("masked_accuracy", "max") if config.pretrains else ("loss", "min")

    def metric_bounds(self, config: Settings) -> Mapping[str, tuple[float, float]]:
        return {"masked_accuracy": (0, 1)}

    def mean_over(self, config: Settings) -> Mapping[str, str | None]:
        return tasks.MEAN_OVER if config.pretrains else {}

    def shard(self, config: Settings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {
                "data_path": str(data),
                "rank_worldsize": f"{rank},{world_size}",
                **config.data.model_dump(exclude_none=True),
            },
        }

    def natural_clients(self, config: Settings, data: Path) -> int:
        return LibriSpeechShardDescriptor.natural_clients(data)

    def evaluate(self, model: Hubert, config: Settings, data: Path, device: str) -> Metrics:
        """Metrics of `model` on the validation clips of all clients, on dev-clean and on test-clean, as far as they are
        there and have targets; of a student also how it compares in `size_and_speed`."""
        descriptor = LibriSpeechShardDescriptor(data, **config.data.model_dump())
        mask, objective = config.mask if config.pretrains else None, _objective(config)
        metrics = {}
        for split in ("validation", "dev", "test"):
            dataset = descriptor.get_dataset(split)
            # Codebooks of each client's own say nothing about clips that are nobody's.
            if len(dataset) and (dataset.targets_info is not None or not config.pretrains):
                metrics[split] = validate(model, Clips(dataset, mask, config.clusters), device, objective)
        if config.distillation is not None:
            teacher = load_teacher(config.distillation.teacher)
            metrics["size_and_speed"] = compare_size_and_speed(model, teacher, device)
        return metrics

    def save(self, model: Hubert, config: Settings, folder: Path) -> None:
        save_model(model, folder)

    def plot(self, records: Sequence[Record], config: Settings, data: Path, clients: int, part: str, out: Path) -> None:
        """Draw progress.png, and hours_per_client.png where there are several; write tensorboard/."""
        # On an envoy nobody draws: it is spared the time and the memory.
        from workspaces.hubert import plots

        metric = "masked_accuracy" if config.pretrains else "loss"
        plots.plot_progress(to_frame(records), metric, out / "progress.png")
        plots.write_tensorboard(records, out / "tensorboard")
        if clients > 1:
            plots.plot_hours_per_client(LibriSpeechShardDescriptor.hours_per_client(data), out / "hours_per_client.png")

    def plot_comparison(self, histories: Mapping[str, Sequence[Record]], config: Settings, path: Path) -> None:
        """Masked accuracy of several runs of pretraining by round."""
        from workspaces.hubert.plots import plot_masked_accuracy

        plot_masked_accuracy({name: to_frame(records) for name, records in histories.items()}, path)
