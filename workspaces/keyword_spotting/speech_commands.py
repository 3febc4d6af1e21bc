"""The common part of workloads on SUPERB's Speech Commands: clients of the corpus, and what is best."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from openfl.interface.interactive_api.shard_descriptor import ShardDataset
from pydantic import Field, model_validator

from openfl_audio.protocol.plan import Direction
from openfl_audio.protocol.privacy import GradientLevel
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from openfl_audio.training.workload import Metrics, Workload
from shard_descriptors.superb import SuperbShardDescriptor

SHARD_DESCRIPTOR = "shard_descriptors.superb.SuperbShardDescriptor"


class DataSettings(Group):
    """The division of speakers among clients: see `SuperbShardDescriptor`."""

    partition: Literal["speaker", "speaker_groups", "clips"] = Field(
        default="speaker",
        description="division among clients: of speakers, of groups of them, or of clips regardless of the speaker",
    )
    speakers_per_group: int | None = Field(default=None, description="speakers of a group, with speaker_groups only")
    silence_share: float | None = Field(
        default=None,
        description="silence for each spoken clip, cut out of noise recordings; without it each is one clip",
    )


class SpeechCommandsSettings(RunSettings):
    """Settings of a run on Speech Commands."""

    data: DataSettings = Field(default=DataSettings(), description="division of the corpus among clients")
    metric_for_best: Literal["accuracy", "loss"] = Field(
        default="accuracy", description="metric of the validation that chooses the best model"
    )
    warmup: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of all steps in which the learning rate rises; without it there is no rise",
    )

    @model_validator(mode="after")
    def check_privacy(self) -> "SpeechCommandsSettings":
        """Raise ValueError if units of privacy would share a recording."""
        if isinstance(self.privacy, GradientLevel) and self.data.silence_share is not None:
            raise ValueError(
                "data.silence_share cuts a noise recording into several clips, each of which would be a unit of "
                "privacy: leave it out, or privacy"
            )
        return self


Config = TypeVar("Config", bound=SpeechCommandsSettings)


class SpeechCommandsWorkload(Workload[Config]):
    """Base of the workloads that learn twelve words: it leaves the model, its tasks and its data open."""

    corpus = SuperbShardDescriptor.corpus

    @abstractmethod
    def validate(self, model: Any, dataset: ShardDataset, device: str) -> dict[str, float]:
        """Return the metrics of `model` on all clips of a split."""

    def best(self, config: Config) -> tuple[str, Direction]:
        return config.metric_for_best, "max" if config.metric_for_best == "accuracy" else "min"

    def metric_bounds(self, config: Config) -> Mapping[str, tuple[float, float]]:
        return {"accuracy": (0, 1)}

    def shard(self, config: Config, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {
                "data_path": str(data),
                "rank_worldsize": f"{rank},{world_size}",
                "seed": config.seed,
                **config.data.model_dump(exclude_none=True),
            },
        }

    def natural_clients(self, config: Config, data: Path) -> int:
        division = config.data.model_dump(exclude={"silence_share"})
        return SuperbShardDescriptor.natural_clients(data, **division, seed=config.seed)

    def evaluate(self, model: Any, config: Config, data: Path, device: str) -> Metrics:
        """Return metrics on all validation clips, and on those of the test speakers, who are no clients."""
        descriptor = SuperbShardDescriptor(data, seed=config.seed)
        return {split: self.validate(model, descriptor.get_dataset(split), device) for split in ("validation", "test")}

    def plot(self, records: Sequence[Record], config: Config, data: Path, clients: int, part: str, out: Path) -> None:
        """Draw accuracy.png, and clips_per_client.png where there are several clients."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.keyword_spotting.plots import plot_accuracy, plot_clips_per_client

        plot_accuracy(to_frame(records), out / "accuracy.png")
        if clients > 1:
            counts = SuperbShardDescriptor.clips_per_client(data, clients, **config.data.model_dump(), seed=config.seed)
            plot_clips_per_client(counts, out / "clips_per_client.png")
