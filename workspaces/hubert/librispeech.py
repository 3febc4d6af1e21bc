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
    """Settings of the clients' optimizer, with those of Adam."""

    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.98), description="betas of Adam and its kin; fairseq's for HuBERT by default"
    )
    epsilon: float = Field(default=1e-6, gt=0, description="epsilon of Adam and its kin")

    def recipe(self) -> Callable[..., torch.optim.Optimizer]:
        recipe = super().recipe()
        return recipe if self.name == "sgd" else partial(recipe, betas=self.betas, eps=self.epsilon)


class ModelSettings(Group):
    """The sizes of a HuBERT, and how it is trained."""

    config: str = Field(description="file in configs/, or a path, with the sizes of the model")
    hidden_size: int | None = Field(default=None, ge=1, description="width of the Transformer, in place of the file's")
    num_hidden_layers: int | None = Field(
        default=None, ge=1, description="layers of the Transformer, in place of the file's"
    )
    num_attention_heads: int | None = Field(
        default=None, ge=1, description="attention heads of a layer, in place of the file's"
    )
    intermediate_size: int | None = Field(
        default=None, ge=1, description="width of a layer's middle, in place of the file's"
    )
    feature_grad_mult: float = Field(default=0.1, gt=0, le=1, description="factor of the gradients of the convolutions")
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again on the way back, which takes less memory and more time"
    )

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes that the settings name, by their names in Transformers' HubertConfig."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class HubertSettings(RunSettings):
    """Settings of training a HuBERT, with whatever objective."""

    optimizer: AdamSettings = Field(description="optimizer of the clients")
    model: ModelSettings = Field(description="model that is trained")
    batch_size: int = Field(default=64, ge=1, description="clips of a batch at most")
    max_samples_per_batch: int | Literal["auto"] = Field(
        default=1_400_000,
        description="samples of a batch at most, padding included; auto takes what the free memory allows",
    )
    max_clip_samples: int = Field(
        default=250_000, ge=400, description="samples of a clip at most; of a longer one a part is cut out at random"
    )
    accumulate: int = Field(default=1, ge=1, description="batches for one step of the optimizer")
    warmup: float = Field(
        default=0.08,
        ge=0,
        lt=1,
        description="share of the steps of all rounds in which the learning rate rises; then it falls to 0",
    )
    clip_grad_norm: float = Field(default=10.0, gt=0, description="largest norm of the gradients")
    warn_grad_norm: float = Field(default=10.0, gt=0, description="norm of the gradients that the log tells of")
    proximal_mu: float = Field(default=0.0, ge=0, description="weight of FedProx's proximal term")
    autocast: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="precision of training; float16 needs a GPU"
    )

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
            warn_grad_norm=self.warn_grad_norm,
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

    def save(self, model: Hubert, config: Config, folder: str | Path) -> None:
        save_model(model, Path(folder))

    def plot(self, records: Sequence[Record], config: Config, data: Path, clients: int, part: str, out: Path) -> None:
        """Draw progress.png, and hours_per_client.png where there are several clients."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.hubert import plots

        plots.plot_progress(to_frame(records), self.best(config)[0], out / "progress.png")
        if clients > 1:
            plots.plot_hours_per_client(LibriSpeechShardDescriptor.hours_per_client(data), out / "hours_per_client.png")
