"""The settings that all workloads share; each workload subclasses RunSettings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.privacy import Privacy

if TYPE_CHECKING:
    import torch


class Group(BaseModel):
    """Base of all groups of settings: they do not change, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSettings(Group):
    """Settings of the clients' optimizer."""

    name: Literal["sgd", "adam", "adamw", "radam"] = Field(default="sgd", description="optimizer of the clients")
    learning_rate: float = Field(gt=0, description="learning rate of the clients")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of the clients' optimizer")

    @field_validator("momentum")
    @classmethod
    def check_momentum(cls, momentum: float, info: ValidationInfo) -> float:
        """Raise ValueError for momentum that the optimizer does not have."""
        if momentum and info.data.get("name") != "sgd":
            raise ValueError("only sgd has one")
        return momentum

    def recipe(self) -> "Callable[..., torch.optim.Optimizer]":
        """Return the function that makes the optimizer of given parameters."""
        # The help of a command reads these settings, and should not wait for torch.
        import torch

        rate, decay = self.learning_rate, self.weight_decay
        if self.name == "sgd":
            return partial(torch.optim.SGD, lr=rate, weight_decay=decay, momentum=self.momentum)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
        return partial(kinds[self.name], lr=rate, weight_decay=decay)


class RunSettings(Group):
    """Settings of a run of any workload."""

    rounds: int = Field(ge=1, description="number of rounds")
    clients: int | Literal["natural"] = Field(
        default="natural", description="number of clients, or natural: those of the corpus"
    )
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the clients that train in a round")
    fraction_rounding: Literal["up", "down"] = Field(
        default="up", description="a tenth of 21 clients is 3 up, or 2 down; it is one at least"
    )
    min_trainers: int = Field(
        default=1, ge=1, description="so many clients train in a round at least, where the fraction is smaller"
    )
    local_epochs: int = Field(default=1, ge=1, description="passes of a client over its data in a round")
    batch_size: int = Field(ge=1, description="clips of a batch")
    optimizer: OptimizerSettings = Field(description="optimizer of the clients")
    opt_treatment: Literal["RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL"] = Field(
        default="RESET",
        description="state of a client's optimizer at the start of a round: fresh, its own, or the mean of all",
    )
    aggregation: Aggregation = Field(default=Aggregation(), description="aggregation of the updates of a round")
    privacy: Privacy | None = Field(
        default=None,
        description="differential privacy by DP-SGD at the clients, or of sites by the director; without it none",
    )
    precision: Literal["float32", "float16"] = Field(
        default="float32", description="precision in which tensors are transmitted"
    )
    validate_every: int = Field(
        default=1, ge=1, description="validate the global model in rounds 0, validate_every, ... and in the last one"
    )
    patience: int | None = Field(
        default=None,
        ge=0,
        description="validations without a better one after which the run ends; without it, or with 0, all are run",
    )
    project_name: str | None = Field(
        default=None, min_length=1, description="project of the tracker Trackio that gets the rounds as well"
    )
    tags: tuple[str, ...] = Field(default=(), description="words by which the tracker finds the run")
    keep: int = Field(default=0, ge=0, description="number of last rounds whose models are kept")
    seed: int = Field(default=0, ge=0, description="seed of every random choice")
    best_epoch_path: Path | None = Field(
        default=None, description="file for the best model's weights besides, .pt or safetensors, in the run's folder"
    )
    local_tensors: list[str] = Field(default=[], description="patterns of tensors that never leave their client")
    judge: Literal["scores", "gain", "matrix"] = Field(
        default="scores",
        description="scores of each client; the gain over training alone; the models of all clients at all clients",
    )
    init: Path | None = Field(
        default=None,
        description="start of the training: an earlier run (its best model), a model, or a file",
    )

    @field_validator("clients", mode="before")
    @classmethod
    def check_clients(cls, clients: Any) -> Any:
        """Raise ValueError unless clients are a number, or "natural"."""
        if clients == "natural" or (isinstance(clients, int) and clients >= 1):
            return clients
        raise ValueError("it should be a number from 1 on, or natural")

    @field_validator("init")
    @classmethod
    def check_init(cls, init: Path | None) -> Path | None:
        """Raise ValueError unless there are weights to start from."""
        if init is not None and not weights_of(init).exists():
            raise ValueError(
                "it has no model/model.safetensors, and is neither an exported model nor a file of weights"
            )
        return init


def weights_of(init: Path) -> Path:
    """Return the file with the weights of a run or of an exported model, or the file itself; it need not be there."""
    if init.suffix == ".safetensors" or init.is_file():
        return init
    return init / "model.safetensors" if (init / "model.safetensors").exists() else init / "model" / "model.safetensors"
