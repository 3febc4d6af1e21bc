"""Classification of recordings of a site's own, in all four modes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDataset
from pydantic import Field, field_validator, model_validator
from safetensors.torch import save_model

from openfl_audio.config import load_settings
from openfl_audio.protocol.plan import Direction
from openfl_audio.protocol.privacy import GradientLevel
from openfl_audio.training.adapters import AdapterSettings
from openfl_audio.training.export import extend_config
from openfl_audio.training.history import Record
from openfl_audio.training.run_settings import Group
from openfl_audio.training.sites import summarize_scores
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor, count_classes
from shard_descriptors.kinds import kind_of
from workspaces.audio_classification.data import Augmentation, Clips, RecordingsData
from workspaces.audio_classification.model import CONFIGS, create_classifier, create_extractor
from workspaces.audio_classification.targets import Targets, agree
from workspaces.audio_classification.tasks import (
    MEAN_OVER,
    TrainingSettings,
    macro_f1,
    shares_by_class,
    train_round,
    validate_clips,
)

SCORE = {"label": "accuracy", "labels": "loss", "number": "loss"}


class ModelSettings(Group):
    """The model: pretrained, or from a random start."""

    pretrained: str | None = Field(default=None, description="model to start from: a hub name or a folder")
    config: str | None = Field(default=None, description="file in configs/, or a path, for a random start")

    @field_validator("config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Tasks run in a working directory of their own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class TargetSettings(Group):
    """The classes or numbers that are learned; the corpus completes what is not said."""

    kind: Literal["label", "labels", "number"] | None = Field(
        default=None,
        description="kind of target: one label a recording, several, or a number; by default as the corpus says",
    )
    classes: list[str] | None = Field(
        default=None, description="classes in the order of the model's outputs; by default those of the corpus"
    )
    mapping: dict[str, str | None] = Field(
        default_factory=dict,
        description="labels that are written differently, by how they are written; null leaves out",
    )

    @field_validator("classes", "mapping", mode="before")
    @classmethod
    def check_labels(cls, labels: Any) -> Any:
        """Raise ValueError for labels that YAML does not take for text."""
        named = [*labels, *labels.values()] if isinstance(labels, dict) else labels
        if isinstance(named, list) and any(isinstance(label, bool) for label in named):
            raise ValueError("write labels in quotes, as yes, no, on and off are true and false in YAML")
        return labels


class AugmentationSettings(Group):
    """Settings of `Augmentation`."""

    shift_s: float = Field(
        default=0.0, ge=0, description="shift in time by up to so many seconds either way, around the corner"
    )
    gain_db: float = Field(default=0.0, ge=0, description="make louder or softer by up to so many dB")
    noise_db: float | None = Field(
        default=None,
        description="white noise so many dB below the clip's own level (RMS), up to 20 dB less; or none",
    )
    speeds: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(
        default=[], description="play at one of these speeds, in steps of 0.01, such as [0.9, 1.0, 1.1]"
    )
    time_mask: float = Field(default=0.0, ge=0, lt=1, description="mask up to that share of a spectrogram's frames")
    frequency_mask: float = Field(default=0.0, ge=0, lt=1, description="mask up to that share of a spectrogram's bands")


class AudioClassificationSettings(AdapterSettings):
    """Settings of a run of audio classification."""

    model: ModelSettings = Field(description="model that is trained")
    targets: TargetSettings = Field(default=TargetSettings(), description="classes or numbers that are learned")
    corpus: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the shard descriptor besides the path and the rank"
    )
    clip_s: float = Field(gt=0, description="length of clips in seconds")
    warmup: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of all steps in which the learning rate rises; without it, it is constant",
    )
    balance: Literal["none", "sampling", "weights"] = Field(
        default="none", description="draw every class equally often (sampling), or weigh the loss so (weights)"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    accumulate: int = Field(default=1, ge=1, description="batches for one step of the optimizer")
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest norm of the gradients; without it they are not clipped"
    )
    mixed_precision: bool = Field(default=False, description="bfloat16 where that is exact enough")
    processes: int = Field(
        default=1,
        ge=1,
        description="processes of a node that train together, each on a GPU of its own where there are as many",
    )
    compile: bool = Field(default=False, description="let torch.compile make the model faster after a slow start")
    augmentation: AugmentationSettings = Field(
        default=AugmentationSettings(), description="variation of clips in training"
    )

    @model_validator(mode="after")
    def check_privacy(self) -> "AudioClassificationSettings":
        """Raise ValueError if how often a clip counts would follow from other private clips."""
        if isinstance(self.privacy, GradientLevel) and self.balance != "none":
            raise ValueError(
                f"balance {self.balance} follows from the classes of private clips: leave it out, or privacy"
            )
        return self


class AudioClassification(Workload[AudioClassificationSettings]):
    """Classification of recordings that a table or a folder names; a model of one's own overrides `model`."""

    config_class = AudioClassificationSettings
    corpus = RecordingsShardDescriptor.corpus

    def targets(self, config: AudioClassificationSettings) -> Targets:
        """Return what the model learns, of settings that `complete` has completed."""
        mapping = tuple(sorted(config.targets.mapping.items()))
        return Targets(config.targets.kind or "label", tuple(config.targets.classes or ()), mapping)

    def extractor(self, config: AudioClassificationSettings) -> Any:
        """Return what makes the model's inputs of a waveform, or None where it hears the waveform."""
        return create_extractor(config.model.pretrained, config=config.model.config)

    def model(self, config: AudioClassificationSettings) -> Callable[[], torch.nn.Module]:
        source: dict[str, Any] = {"config": config.model.config, "targets": self.targets(config), "seed": config.seed}
        more: dict[str, Any] = {"compile": config.compile, "adapter": config.adapter}
        return partial(create_classifier, config.model.pretrained, **source, **more)

    def tasks(self, config: AudioClassificationSettings) -> TaskInterface:
        training = TrainingSettings(
            rounds=config.rounds,
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            learning_rate=None if config.warmup is None else config.optimizer.learning_rate,
            warmup=config.warmup or 0.0,
            balance=config.balance,
            label_smoothing=config.label_smoothing,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
            mixed_precision=config.mixed_precision,
            processes=config.processes,
            seed=config.seed,
        )
        return register_tasks(train_round, validate_clips, {"settings": training})

    def data(self, config: AudioClassificationSettings) -> DataInterface:
        varied = config.augmentation.model_dump()
        augmentation = Augmentation(**{**varied, "speeds": tuple(varied["speeds"])})
        return RecordingsData(self.targets(config), config.clip_s, self.extractor(config), augmentation)

    def best(self, config: AudioClassificationSettings) -> tuple[str, Direction]:
        score = SCORE[config.targets.kind or "label"]
        return score, "max" if score == "accuracy" else "min"

    def metric_bounds(self, config: AudioClassificationSettings) -> Mapping[str, tuple[float, float]]:
        return {"accuracy": (0, 1)}

    def mean_over(self, config: AudioClassificationSettings) -> Mapping[str, str | None]:
        return MEAN_OVER

    def complete(self, config: AudioClassificationSettings, data: Path) -> AudioClassificationSettings:
        """Fill in the kind and the classes of the corpus. Raises SettingsError for labels that are no class."""
        shard = self.open(config, data, 1, 1)
        counts = {split: count_classes(recordings) for split, recordings in shard.splits.items()}
        agreed = agree({str(data): counts}, shard.listing.kind, config.targets.classes, config.targets.mapping).targets
        changes = {"kind": agreed.kind, "classes": list(agreed.classes) or None}
        return config.model_copy(update={"targets": config.targets.model_copy(update=changes)})

    def shard(self, config: AudioClassificationSettings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        kind = kind_of(data)
        place = {"data_path": str(data), "rank_worldsize": f"{rank},{world_size}", "seed": config.seed}
        return {
            "template": f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}",
            "params": {**config.corpus, **place},
        }

    def open(
        self, config: AudioClassificationSettings, data: Path, rank: int, world_size: int
    ) -> RecordingsShardDescriptor:
        """Return a shard of the corpus."""
        return kind_of(data)(**self.shard(config, data, rank, world_size)["params"])

    def natural_clients(self, config: AudioClassificationSettings, data: Path) -> int:
        return len(set(self.open(config, data, 1, 1).get_dataset("train").groups) - {""}) or 1

    def evaluate(self, model: Any, config: AudioClassificationSettings, data: Path, device: str) -> Metrics:
        """Return metrics on all validation and test clips, and how far the sites are apart: see `summarize_scores`.

        A site is judged by its own validation clips.
        """
        shard = self.open(config, data, 1, 1)
        metrics = {
            split: self.score(model, config, shard.get_dataset(split), device) for split in ("validation", "test")
        }
        if config.clients != "natural" and config.clients > 1:
            name, direction = self.best(config)
            shards = [self.open(config, data, rank, config.clients) for rank in range(1, config.clients + 1)]
            found = {
                str(each.rank): self.score(model, config, each.get_dataset("validation"), device) for each in shards
            }
            scores = {site: metrics[name] for site, metrics in found.items() if metrics}
            metrics["sites"] = summarize_scores(scores, direction)
        return metrics

    def score(
        self, model: Any, config: AudioClassificationSettings, dataset: ShardDataset, device: str = "cpu"
    ) -> dict[str, float]:
        """Return metrics of a model on all clips of a split, none where it has no clip."""
        clips = Clips(dataset, self.targets(config), config.clip_s, self.extractor(config))
        return summarize(validate_clips(model, clips, device)) if len(clips) else {}

    def plot(
        self,
        records: Sequence[Record],
        config: AudioClassificationSettings,
        data: Path,
        clients: int,
        part: str,
        out: Path,
    ) -> None:
        """Draw confusions.png, of all validation clips with the best model."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.audio_classification import report

        report.plot_confusions(records, self.best(config), self.targets(config).classes, out / "confusions.png")

    def plot_clients(
        self, scores: Mapping[str, Mapping[str, float]], config: AudioClassificationSettings, data: Path, out: Path
    ) -> None:
        """Draw classes_by_client.png, the recall of each class at each client."""
        from workspaces.audio_classification import report

        report.plot_recalls(scores, self.targets(config).classes, out / "classes_by_client.png")

    def save(self, model: Any, config: AudioClassificationSettings, folder: str | Path) -> None:
        """Write the model so that a pipeline loads it with its extractor; of another module model.safetensors alone."""
        folder = Path(folder)
        if not hasattr(model, "save_pretrained"):
            folder.mkdir(parents=True, exist_ok=True)
            save_model(model, str(folder / "model.safetensors"))
            return
        model.save_pretrained(folder)
        if (extractor := self.extractor(config)) is not None:
            extractor.save_pretrained(folder)
        extend_config(folder, {"clip_seconds": config.clip_s})


def read_settings(
    name: str | Path, targets: Targets, changes: Mapping[str, Any] | None = None
) -> AudioClassificationSettings:
    """Return the settings of a file in `configs/`, or of a path, for targets that the sites agreed on.

    `changes` are keys with dots between groups, such as {"optimizer.learning_rate": 0.01}.
    """
    agreed = {"kind": targets.kind, "classes": list(targets.classes) or None, "mapping": dict(targets.mapping)}
    return load_settings(CONFIGS / name, AudioClassificationSettings, {**(changes or {}), "targets": agreed})


def summarize(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of `validate_clips` with macro F1 in place of the shares that it is made of."""
    summary = {name: value for name, value in metrics.items() if "/" not in name}
    return summary | ({"macro_f1": macro_f1(metrics)} if shares_by_class(metrics, "true") else {})
