"""Keyword spotting with Wav2Vec2, with Whisper, or with a small head on the features of a trained model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field, field_validator, model_validator

from openfl_audio.protocol.plan import Direction
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.speech_commands import LABELS
from shard_descriptors.superb import SuperbShardDescriptor
from workspaces.keyword_spotting import encoder_tasks, tasks
from workspaces.keyword_spotting.data import Clips, KeywordData
from workspaces.keyword_spotting.encoder_data import EncoderClips, EncoderData
from workspaces.keyword_spotting.model import create_feature_extractor, create_wav2vec2
from workspaces.keyword_spotting.upstream import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper

SHARD_DESCRIPTOR = "shard_descriptors.superb.SuperbShardDescriptor"


class ModelSettings(Group):
    """`pretrained` is a hub name or a folder, `config` a file in `configs/` (or a path) for a random start.

    With the architecture upstream it is `upstream` that names a trained model, or "log_mel". `form` and `compile` are
    Whisper's, `frozen` is of Whisper and upstream: see `create_whisper` and `create_upstream`.
    """

    architecture: Literal["whisper", "wav2vec2", "upstream"]
    pretrained: str | None = None
    upstream: str | None = None
    config: str | None = None
    form: Literal["exact", "short"] = "exact"
    frozen: bool = True
    compile: bool = False

    @field_validator("upstream", "config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Whoever trains has a working directory of its own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class DataSettings(Group):
    """How speakers become clients: see `SuperbShardDescriptor`."""

    partition: Literal["speaker", "speaker_groups", "clips"] = "speaker"
    speakers_per_group: int | None = None
    silence_share: float | None = None


class Settings(RunSettings):
    """`warmup` is the share of all steps in which the learning rate rises; without it the rate is constant."""

    model: ModelSettings
    data: DataSettings = DataSettings()
    warmup: float | None = Field(default=None, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # not of wav2vec2

    @model_validator(mode="after")
    def check_model(self) -> "Settings":
        name, other = (
            ("upstream", "pretrained") if self.model.architecture == "upstream" else ("pretrained", "upstream")
        )
        if (getattr(self.model, name) is None) == (self.model.config is None):
            raise ValueError(f"model needs either {name} or config")
        if getattr(self.model, other) is not None:
            raise ValueError(f"model.{other} does not go with the architecture {self.model.architecture}")
        return self


def create_model(settings: ModelSettings, seed: int) -> torch.nn.Module:
    source: dict[str, Any] = {"config": settings.config, "labels": LABELS, "seed": seed}
    if settings.architecture == "wav2vec2":
        return create_wav2vec2(settings.pretrained, **source)
    if settings.architecture == "upstream":
        return create_upstream(settings.upstream, frozen=settings.frozen, **source)
    return create_whisper(
        settings.pretrained, form=settings.form, frozen=settings.frozen, compile=settings.compile, **source
    )


def _training(settings: Settings) -> tasks.TrainingSettings:
    values: dict[str, Any] = {
        "rounds": settings.rounds,
        "local_epochs": settings.local_epochs,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "warmup": settings.warmup or 0.0,
    }
    if settings.model.architecture == "wav2vec2":
        return tasks.TrainingSettings(**values)
    return encoder_tasks.EncoderSettings(
        **values, constant_rate=settings.warmup is None, label_smoothing=settings.label_smoothing
    )


class KeywordSpotting(Workload[Settings]):
    config_class = Settings
    corpus = SuperbShardDescriptor.corpus

    def model(self, config: Settings) -> Callable[[], torch.nn.Module]:
        return partial(create_model, config.model, config.seed)

    def tasks(self, config: Settings) -> TaskInterface:
        module = tasks if config.model.architecture == "wav2vec2" else encoder_tasks
        return register_tasks(module.train_round, module.validate_clips, {"settings": _training(config)})

    def data(self, config: Settings) -> DataInterface:
        return KeywordData() if config.model.architecture == "wav2vec2" else EncoderData()

    def best(self, config: Settings) -> tuple[str, Direction]:
        return "accuracy", "max"

    def metric_bounds(self, config: Settings) -> Mapping[str, tuple[float, float]]:
        return {"accuracy": (0, 1)}

    def shard(self, config: Settings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {
                "data_path": str(data),
                "rank_worldsize": f"{rank},{world_size}",
                "seed": config.seed,
                **config.data.model_dump(exclude_none=True),
            },
        }

    def natural_clients(self, config: Settings, data: Path) -> int:
        division = config.data.model_dump(exclude={"silence_share"})
        return SuperbShardDescriptor.natural_clients(data, **division, seed=config.seed)

    def evaluate(self, model: Any, config: Settings, data: Path, device: str) -> Metrics:
        """Metrics of `model` on all validation clips, and on those of the test speakers, who are nobody's clients."""
        descriptor = SuperbShardDescriptor(data, seed=config.seed)
        metrics = {}
        for split in ("validation", "test"):
            dataset = descriptor.get_dataset(split)
            if config.model.architecture == "wav2vec2":
                metrics[split] = tasks.validate_clips(model, Clips(dataset), device)
            else:
                metrics[split] = encoder_tasks.validate_clips(model, EncoderClips(dataset), device)
        return metrics

    def save(self, model: Any, config: Settings, folder: Path) -> None:
        model.save_pretrained(folder)
        if config.model.architecture == "wav2vec2":
            create_feature_extractor().save_pretrained(folder)

    def plot(self, records: Sequence[Record], config: Settings, data: Path, clients: int, part: str, out: Path) -> None:
        """accuracy.png, and clips_per_client.png where there are several."""
        # On an envoy nobody draws: it is spared the time and the memory.
        from workspaces.keyword_spotting.plots import plot_accuracy, plot_clips_per_client

        plot_accuracy(to_frame(records), out / "accuracy.png")
        if clients > 1:
            counts = SuperbShardDescriptor.clips_per_client(data, clients, **config.data.model_dump(), seed=config.seed)
            plot_clips_per_client(counts, out / "clips_per_client.png")
