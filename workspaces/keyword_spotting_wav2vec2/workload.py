"""Keyword spotting by fine-tuning Wav2Vec2."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDataset
from pydantic import Field, field_validator, model_validator

from openfl_audio.training.adapters import AdapterSettings
from openfl_audio.training.run_settings import Group
from openfl_audio.training.workload import register_tasks
from shard_descriptors.superb.layout import LABELS
from workspaces.keyword_spotting.speech_commands import SpeechCommandsSettings, SpeechCommandsWorkload
from workspaces.keyword_spotting_wav2vec2 import tasks
from workspaces.keyword_spotting_wav2vec2.data import Clips, KeywordData
from workspaces.keyword_spotting_wav2vec2.model import create_wav2vec2, save_wav2vec2


class ModelSettings(Group):
    """The model: pretrained, or from a random start."""

    pretrained: str | None = Field(default=None, description="Wav2Vec2 to start from: a hub name or a folder")
    config: str | None = Field(default=None, description="file in configs/, or a path, for a random start")

    @field_validator("config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Tasks run in a working directory of their own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class Wav2Vec2KeywordSpottingSettings(SpeechCommandsSettings, AdapterSettings):
    """Settings of a run; without `warmup` the learning rate falls from the first step on."""

    model: ModelSettings = Field(description="model that is trained")
    accumulate: int = Field(default=1, ge=1, description="batches for one step of the optimizer")
    clip_grad_norm: float = Field(
        default=1.0, ge=0, description="largest norm of the gradients; 0 leaves them as they are"
    )
    autocast: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="precision of training; float16 needs a GPU"
    )

    @model_validator(mode="after")
    def check_model(self) -> "Wav2Vec2KeywordSpottingSettings":
        if (self.model.pretrained is None) == (self.model.config is None):
            raise ValueError("model needs either pretrained or config")
        return self


class Wav2Vec2KeywordSpotting(SpeechCommandsWorkload[Wav2Vec2KeywordSpottingSettings]):
    """Keyword spotting by fine-tuning Wav2Vec2."""

    config_class = Wav2Vec2KeywordSpottingSettings
    builds_on: ClassVar[tuple[str, ...]] = ("workspaces.keyword_spotting",)

    def model(self, config: Wav2Vec2KeywordSpottingSettings) -> Callable[[], torch.nn.Module]:
        source: dict[str, Any] = {"config": config.model.config, "labels": LABELS, "seed": config.seed}
        return partial(create_wav2vec2, config.model.pretrained, **source, adapter=config.adapter)

    def tasks(self, config: Wav2Vec2KeywordSpottingSettings) -> TaskInterface:
        training = tasks.TrainingSettings(
            rounds=config.rounds,
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            warmup=config.warmup or 0.0,
            seed=config.seed,
            accumulate=config.accumulate,
            clip_grad_norm=config.clip_grad_norm,
            autocast=config.autocast,
        )
        return register_tasks(tasks.train_round, tasks.validate_clips, {"settings": training})

    def data(self, config: Wav2Vec2KeywordSpottingSettings) -> DataInterface:
        return KeywordData()

    def validate(self, model: Any, dataset: ShardDataset, device: str) -> dict[str, float]:
        return tasks.validate_clips(model, Clips(dataset), device)

    def save(self, model: Any, config: Wav2Vec2KeywordSpottingSettings, folder: str | Path) -> None:
        save_wav2vec2(model, Path(folder))
