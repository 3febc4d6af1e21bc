"""The common part of workloads that train a HuBERT on LibriSpeech: batches, optimizer, clients, saving."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator

from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, OptimizerSettings, RunSettings
from openfl_audio.training.workload import Workload
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from workspaces.hubert import tasks
from workspaces.hubert.model import Hubert, save_model

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
    """`config` is a file in `configs/` (or a path); `feature_grad_mult` scales the gradients of the convolutions.

    The sizes take the place of those in the file.
    """

    config: str
    hidden_size: int | None = Field(default=None, ge=1)
    num_hidden_layers: int | None = Field(default=None, ge=1)
    num_attention_heads: int | None = Field(default=None, ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    feature_grad_mult: float = Field(default=0.1, gt=0, le=1)
    gradient_checkpointing: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes that the settings name, by their names in Transformers' HubertConfig."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class HubertSettings(RunSettings):
    """Settings of training a HuBERT, with whatever objective.

    A batch has at most `max_samples_per_batch`, padding included, and `batch_size` clips; of longer ones than
    `max_clip_samples` a part is cut out at random. "auto" takes what the free memory allows.

    `warmup` is the share of the steps of all rounds in which the learning rate rises; then it falls to 0. `autocast` is
    the precision of training (`precision` is that of what is sent); with `proximal_mu` it is FedProx.
    """

    optimizer: AdamSettings
    model: ModelSettings
    batch_size: int = Field(default=64, ge=1)
    max_samples_per_batch: int | Literal["auto"] = 1_400_000
    max_clip_samples: int = Field(default=250_000, ge=400)
    accumulate: int = Field(default=1, ge=1)
    warmup: float = Field(default=0.08, ge=0, lt=1)
    clip_grad_norm: float = Field(default=10.0, gt=0)
    proximal_mu: float = Field(default=0.0, ge=0)
    autocast: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def check_batches(self) -> "HubertSettings":
        if self.max_samples_per_batch != "auto" and self.max_samples_per_batch < self.max_clip_samples:
            raise ValueError(
                f"max_samples_per_batch is {self.max_samples_per_batch}: should have room for one clip of "
                f"max_clip_samples, {self.max_clip_samples}"
            )
        return self

    @property
    def training(self) -> tasks.TrainingSettings:
        """The settings of the task that trains."""
        return tasks.TrainingSettings(
            rounds=self.rounds,
            learning_rate=self.optimizer.learning_rate,
            local_epochs=self.local_epochs,
            max_samples=self.max_samples_per_batch,
            max_clip_samples=self.max_clip_samples,
            max_clips=self.batch_size,
            accumulate=self.accumulate,
            warmup=self.warmup,
            clip_grad_norm=self.clip_grad_norm,
            proximal_mu=self.proximal_mu,
            autocast=self.autocast,
            gradient_checkpointing=self.model.gradient_checkpointing,
            feature_grad_mult=self.model.feature_grad_mult,
        )


Config = TypeVar("Config", bound=HubertSettings)


class HubertWorkload(Workload[Config]):
    """Base of the workloads that train a HuBERT: it leaves the model, its tasks, its data and what is best open."""

    corpus = LibriSpeechShardDescriptor.corpus

    def shard_parameters(self, config: Config) -> Mapping[str, Any]:
        """Return the parameters of the shard descriptor besides the corpus and the part of it."""
        return {}

    def shard(self, config: Config, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {
                "data_path": str(data),
                "rank_worldsize": f"{rank},{world_size}",
                **self.shard_parameters(config),
            },
        }

    def natural_clients(self, config: Config, data: Path) -> int:
        return LibriSpeechShardDescriptor.natural_clients(data)

    def save(self, model: Hubert, config: Config, folder: Path) -> None:
        save_model(model, folder)

    def plot(self, records: Sequence[Record], config: Config, data: Path, clients: int, part: str, out: Path) -> None:
        """Draw progress.png, and hours_per_client.png where there are several clients; write tensorboard/."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.hubert import plots

        plots.plot_progress(to_frame(records), self.best(config)[0], out / "progress.png")
        plots.write_tensorboard(records, out / "tensorboard")
        if clients > 1:
            plots.plot_hours_per_client(LibriSpeechShardDescriptor.hours_per_client(data), out / "hours_per_client.png")
