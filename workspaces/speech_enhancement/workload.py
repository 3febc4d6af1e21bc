"""Speech enhancement by MixIT, on mixtures of which some clients know the clean speech."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field, ValidationInfo, field_validator, model_validator

from openfl_audio.protocol.plan import Direction
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.librifsd50k import LibriFsd50kShardDescriptor
from workspaces.speech_enhancement import tasks
from workspaces.speech_enhancement.data import EnhancementData, Sources
from workspaces.speech_enhancement.export import save_sudormrf
from workspaces.speech_enhancement.listening import write_examples, write_tensorboard
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.quality import quality_over_clips
from workspaces.speech_enhancement.settings import SudoRmRfSettings

SPLITS = ("validation", "test")
SHARD_DESCRIPTOR = "shard_descriptors.librifsd50k.LibriFsd50kShardDescriptor"


class DataSettings(Group):
    """The division of recordings among clients, and their mixtures: see `LibriFsd50kShardDescriptor`."""

    partition: Literal["contiguous", "random"] = Field(
        default="contiguous",
        description="division of speakers among clients: in the order of their numbers, or at random",
    )
    available_speech_percentage: float = Field(
        default=0.5, gt=0, le=1, description="share of the pairs of speech and noise that are mixed"
    )
    p_single_mix: float = Field(
        default=0.0, ge=0, le=1, description="chance that one of an item's two mixtures is silent"
    )
    max_abs_snr_db: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="noise is scaled to an SNR between minus and plus this, in dB; without it levels are as recorded",
    )
    normalize_audio: bool = Field(default=False, description="give every recording mean 0 and variance 1")
    clip_seconds: float = Field(default=4.0, gt=0, le=60, description="length of a clip; what is longer is cut")
    sample_rate: int = Field(default=16_000, ge=1_000, le=48_000, description="in Hz; recordings are resampled")


class ListeningSettings(Group):
    """WAV files of some validation clips, in `folder`/round-R, when round 0, `every`, ... validates."""

    folder: Path = Field(description="folder of the WAV files, one below it for each round")
    every: int = Field(ge=1, description="rounds between two that are listened to")
    clips: int = Field(default=2, ge=1, description="number of validation clips, the first ones")

    @field_validator("folder")
    @classmethod
    def resolve(cls, folder: Path) -> Path:
        # Tasks run in a working directory of their own.
        return folder.resolve()


class SpeechEnhancementSettings(RunSettings):
    """Settings of a run.

    The number of clients that know their clean speech is rounded down, so that centralized is supervised with
    `p_supervised` 1 only.
    """

    local_epochs: float = Field(  # type: ignore[assignment]
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="passes of a client over its data in a round; may be a fraction",
    )
    model: SudoRmRfSettings = Field(default=SudoRmRfSettings(), description="sizes of the SuDoRM-RF")
    data: DataSettings = Field(
        default=DataSettings(), description="division of the corpus among clients, and its mixtures"
    )
    p_supervised: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of clients, the first ones, that know their clean speech",
    )
    audio_seconds: float = Field(
        default=4.0, gt=0, description="seconds of every clip that train; evaluation is on whole clips"
    )
    clip_grad_norm: float = Field(
        default=5.0, ge=0, description="largest norm of the gradients; 0 leaves them as they are"
    )
    divide_lr_by: float = Field(default=2.0, gt=0, description="divisor of the learning rate")
    divide_lr_every: int = Field(
        default=0, ge=0, description="rounds after which the learning rate is divided; 0 is never"
    )
    best: Literal["si_sdri_1_noise", "si_sdri_2_noises"] = Field(
        default="si_sdri_2_noises",
        description="metric that chooses the best model; the best one by the other is kept as well",
    )
    listening: ListeningSettings | None = Field(default=None, description="estimates of validation clips as WAV files")

    @field_validator("audio_seconds")
    @classmethod
    def check_length(cls, audio_seconds: float, info: ValidationInfo) -> float:
        longest = info.data["data"].clip_seconds if "data" in info.data else math.inf
        if audio_seconds > longest:
            raise ValueError(f"clips have data.clip_seconds, {longest:g} s: it should be no more")
        return audio_seconds

    @model_validator(mode="after")
    def check_sources(self) -> "SpeechEnhancementSettings":
        """Raise ValueError for two sources where a client has no clean speech."""
        if self.model.num_sources < tasks.LEAST_OF_MIXIT and self.p_supervised < 1:
            raise ValueError(
                f"model.num_sources is {self.model.num_sources} and p_supervised {self.p_supervised:g}: a model of two "
                "sources learns from clean speech only, with p_supervised 1; without it there should be three"
            )
        return self


def count_supervised(share: float, world_size: int) -> int:
    """Return how many clients are supervised. They are the first ones, as in FedEnhance.

    >>> count_supervised(0.25, 10), count_supervised(0.29, 100)
    (2, 29)
    """
    # Rounded first, as 0.29 * 100 is 28.999999999999996.
    return math.floor(round(share * world_size, 9))


def _signals(settings: SpeechEnhancementSettings) -> dict[str, Any]:
    """Return what the shard descriptor is told about waveforms."""
    return settings.data.model_dump(include={"normalize_audio", "clip_seconds", "sample_rate"})


def _training(settings: SpeechEnhancementSettings) -> tasks.TrainingSettings:
    return tasks.TrainingSettings(
        learning_rate=settings.optimizer.learning_rate,
        local_epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        num_samples=round(settings.audio_seconds * settings.data.sample_rate),
        clip_grad_norm=settings.clip_grad_norm,
        divide_lr_by=settings.divide_lr_by,
        divide_lr_every=settings.divide_lr_every,
        seed=settings.seed,
    )


def validate(model, clips, device, round_number, listening):
    """Return the metrics of `validate_clips`; write examples to listen to in the rounds that `listening` asks for.

    A negative `round_number` is none of them.
    """
    if listening is not None and round_number >= 0 and round_number % listening.every == 0:
        items = range(min(listening.clips, len(clips)))
        paths = write_examples(model, clips, items, listening.folder / f"round-{round_number:05}", device)
        write_tensorboard(paths, listening.folder / "tensorboard", round_number)
    return tasks.validate_clips(model, clips, device)


class SpeechEnhancement(Workload[SpeechEnhancementSettings]):
    """Speech enhancement; the best model improves SI-SDR most."""

    config_class = SpeechEnhancementSettings
    corpus = LibriFsd50kShardDescriptor.corpus

    def model(self, config: SpeechEnhancementSettings) -> Callable[[], torch.nn.Module]:
        return partial(create_sudormrf, config.model, config.seed)

    def tasks(self, config: SpeechEnhancementSettings) -> TaskInterface:
        training, listening = {"settings": _training(config)}, {"listening": config.listening}
        return register_tasks(tasks.train_round, validate, training, listening)

    def data(self, config: SpeechEnhancementSettings) -> DataInterface:
        return EnhancementData()

    def best(self, config: SpeechEnhancementSettings) -> tuple[str, Direction]:
        return config.best, "max"

    def also_best(self, config: SpeechEnhancementSettings) -> Mapping[str, Direction]:
        return {metric: "max" for metric in tasks.NOISES if metric != config.best}

    def shard(self, config: SpeechEnhancementSettings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {
                "data_path": str(data),
                "rank_worldsize": f"{rank},{world_size}",
                "seed": config.seed,
                "supervised": rank <= count_supervised(config.p_supervised, world_size),
                **config.data.model_dump(exclude_none=True),
            },
        }

    def natural_clients(self, config: SpeechEnhancementSettings, data: Path) -> int:
        return LibriFsd50kShardDescriptor.natural_clients(data)

    def evaluate(self, model: Any, config: SpeechEnhancementSettings, data: Path, device: str) -> Metrics:
        """Return SI-SDR improvements in dB on all validation and on the test clips, and their spread over clips.

        STOI and PESQ of the test clips are there where their packages are installed.
        """
        descriptor = LibriFsd50kShardDescriptor(data, **_signals(config))
        model.to(device)
        metrics: Metrics = {}
        for split in SPLITS:
            clips = Sources(descriptor.get_dataset(split))
            metrics[split] = tasks.validate_clips(model, clips, device)
            metrics[f"{split}_spread"] = tasks.spread_over_clips(model, clips, device)
        quality = quality_over_clips(model, clips, device)
        return metrics | ({"test_quality": quality} if quality else {})

    def save(self, model: Any, config: SpeechEnhancementSettings, folder: str | Path) -> None:
        save_sudormrf(model, Path(folder), config.data.sample_rate)

    def plot(
        self,
        records: Sequence[Record],
        config: SpeechEnhancementSettings,
        data: Path,
        clients: int,
        part: str,
        out: Path,
    ) -> None:
        """Draw si_sdri.png, and clips_per_client.png where there are several clients."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.speech_enhancement.plots import LABELS, plot_clips_per_client, plot_si_sdri

        history = to_frame(records).set_index("round")
        plot_si_sdri({label: history[metric] for metric, label in LABELS.items()}, out / "si_sdri.png")
        if clients > 1:
            counts = LibriFsd50kShardDescriptor.clips_per_client(
                data, clients, config.data.partition, config.data.available_speech_percentage, config.seed
            )
            supervised = count_supervised(config.p_supervised, clients)
            plot_clips_per_client(counts, [i < supervised for i in range(clients)], out / "clips_per_client.png")

    def plot_comparison(
        self, histories: Mapping[str, Sequence[Record]], config: SpeechEnhancementSettings, path: Path
    ) -> None:
        """Draw the SI-SDR improvement of several runs by round, for one noise; the best of "centralized" is a bound.

        Alone, that run is a curve.
        """
        from workspaces.speech_enhancement.plots import plot_si_sdri

        curves = {name: to_frame(records).set_index("round")["si_sdri_1_noise"] for name, records in histories.items()}
        centralized = curves.pop("centralized", None) if len(curves) > 1 else None
        plot_si_sdri(curves, path, None if centralized is None else centralized.max(), "1 noise, validation")

    def plot_search(self, trials: pd.DataFrame, out: Path) -> None:
        """Draw supervised_share.png, where a search was over that alone; `trials` as `Search.summary` gives them."""
        from workspaces.speech_enhancement.plots import LABELS, plot_supervised_share

        columns = {f"{split} {metric}": f"{split}, {label}" for split in SPLITS for metric, label in LABELS.items()}
        # The columns of the other axes would be between these two.
        if trials.columns[:2].tolist() == ["p_supervised", "rounds"]:
            scores = trials.set_index("p_supervised")[list(columns)].rename(columns=columns)
            plot_supervised_share(scores, out / "supervised_share.png")
