"""Keyword spotting with a head on an encoder: Whisper, or the features of another trained model."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor
from pydantic import Field, field_validator, model_validator

from openfl_audio.errors import SettingsError
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
    """`pretrained` is a hub name or a folder, `config` a file in `configs/` (or a path) for a random start.

    With the architecture upstream it is `upstream` that names a trained model, or "log_mel". `form` and `compile` are
    Whisper's, `frozen` is of both: see `create_whisper` and `create_upstream`.
    """

    architecture: Literal["whisper", "upstream"]
    pretrained: str | None = None
    upstream: str | None = None
    config: str | None = None
    form: Literal["exact", "short"] = "exact"
    frozen: bool = True
    compile: bool = False

    @field_validator("upstream", "config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Tasks run in a working directory of their own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class Settings(SpeechCommandsSettings):
    """Settings of a run; without `warmup` the learning rate is constant."""

    model: ModelSettings
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

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


def create_model(settings: ModelSettings, seed: int) -> EncoderModel:
    """Return the model that the settings describe; what is not pretrained depends on `seed`."""
    source: dict[str, Any] = {"config": settings.config, "labels": LABELS, "seed": seed, "frozen": settings.frozen}
    if settings.architecture == "upstream":
        return create_upstream(settings.upstream, **source)
    return create_whisper(settings.pretrained, form=settings.form, compile=settings.compile, **source)


class KeywordSpotting(SpeechCommandsWorkload[Settings]):
    """Keyword spotting with a head on an encoder."""

    config_class = Settings

    def model(self, config: Settings) -> Callable[[], EncoderModel]:
        return partial(create_model, config.model, config.seed)

    def tasks(self, config: Settings) -> TaskInterface:
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

    def data(self, config: Settings) -> DataInterface:
        return EncoderData()

    def validate(self, model: Any, dataset: ShardDataset, device: str) -> dict[str, float]:
        return tasks.validate_clips(model, EncoderClips(dataset), device)

    def preprocess(self, config: Settings, shards: Iterable[ShardDescriptor], device: str) -> int:
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

    def save(self, model: EncoderModel, config: Settings, folder: Path) -> None:
        save_keywords(model, folder)
