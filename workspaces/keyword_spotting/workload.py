"""Keyword spotting with a head on an encoder: Whisper, or the features of another trained model."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor
from pydantic import Field, field_validator, model_validator

from openfl_audio.errors import SettingsError
from openfl_audio.training.adapters import AdapterSettings, Lora, refuse_frozen
from openfl_audio.training.run_settings import Group
from openfl_audio.training.workload import register_tasks
from shard_descriptors.superb.layout import LABELS
from workspaces.keyword_spotting import tasks
from workspaces.keyword_spotting.data import EncoderClips, EncoderData
from workspaces.keyword_spotting.export import save_keywords
from workspaces.keyword_spotting.model import EncoderModel
from workspaces.keyword_spotting.speech_commands import SpeechCommandsSettings, SpeechCommandsWorkload
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper


class ModelSettings(Group):
    """The encoder and its head: see `create_whisper` and `create_upstream`."""

    architecture: Literal["whisper", "upstream"] = Field(
        description="a Whisper encoder, or the features of another speech model, upstream of a small head"
    )
    pretrained: str | None = Field(default=None, description="Whisper to start from: a hub name or a folder")
    upstream: str | None = Field(
        default=None, description="HuBERT or Wav2Vec2 to start from: a hub name or a folder; or log_mel"
    )
    config: str | None = Field(default=None, description="file in configs/, or a path, for a random start")
    form: Literal["exact", "short"] = Field(
        default="exact", description="Whisper's encoder as it is, for 30 s, or its first second only"
    )
    frozen: bool = Field(default=True, description="train the head alone")
    compile: bool = Field(default=False, description="let torch.compile make Whisper faster after a slow start")

    @field_validator("upstream", "config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Tasks run in a working directory of their own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class KeywordSpottingSettings(SpeechCommandsSettings, AdapterSettings):
    """Settings of a run; without `warmup` the learning rate is constant."""

    model: ModelSettings = Field(description="model that is trained")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")

    @model_validator(mode="after")
    def check_model(self) -> "KeywordSpottingSettings":
        name, other = (
            ("upstream", "pretrained") if self.model.architecture == "upstream" else ("pretrained", "upstream")
        )
        if (getattr(self.model, name) is None) == (self.model.config is None):
            raise ValueError(f"model needs either {name} or config")
        if getattr(self.model, other) is not None:
            raise ValueError(f"model.{other} does not go with the architecture {self.model.architecture}")
        refuse_frozen(self.model.frozen, self.adapter, "model.frozen")
        return self


def create_model(settings: ModelSettings, seed: int, adapter: Lora | None = None) -> EncoderModel:
    """Return the model that the settings describe; what is not pretrained depends on `seed`, and so do adapters."""
    source: dict[str, Any] = {"config": settings.config, "labels": LABELS, "seed": seed, "frozen": settings.frozen}
    source["adapter"] = adapter
    if settings.architecture == "upstream":
        return create_upstream(settings.upstream, **source)
    return create_whisper(settings.pretrained, form=settings.form, compile=settings.compile, **source)


class KeywordSpotting(SpeechCommandsWorkload[KeywordSpottingSettings]):
    """Keyword spotting with a head on an encoder."""

    config_class = KeywordSpottingSettings

    def model(self, config: KeywordSpottingSettings) -> Callable[[], EncoderModel]:
        return partial(create_model, config.model, config.seed, config.adapter)

    def tasks(self, config: KeywordSpottingSettings) -> TaskInterface:
        training = tasks.TrainingSettings(
            rounds=config.rounds,
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            warmup=config.warmup or 0.0,
            seed=config.seed,
            constant_rate=config.warmup is None,
            label_smoothing=config.label_smoothing,
        )
        return register_tasks(tasks.train_round, tasks.validate_clips, {"settings": training})

    def data(self, config: KeywordSpottingSettings) -> DataInterface:
        return EncoderData()

    def validate(self, model: Any, dataset: ShardDataset, device: str) -> dict[str, float]:
        return tasks.validate_clips(model, EncoderClips(dataset), device)

    def preprocess(self, config: KeywordSpottingSettings, shards: Iterable[ShardDescriptor], device: str) -> int:
        """Fill the cache of encoder outputs with the training and validation clips of all `shards`."""
        model = self.model(config)()
        if not model.frozen:
            raise SettingsError("model.frozen is false: outputs of an encoder that learns are not kept")
        number = 0
        for shard in shards:
            for split in ("train", "validation"):
                clips = EncoderClips(shard.get_dataset(split), repeat_rare=split == "train")
                clips.prepare(model, device)
                number += len(clips)
        return number

    def save(self, model: EncoderModel, config: KeywordSpottingSettings, folder: str | Path) -> None:
        save_keywords(model, Path(folder))
