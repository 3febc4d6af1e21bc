"""The settings that all workloads share; each workload subclasses RunSettings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from openfl_audio.errors import SettingsError, TextError
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.text import read_text


class Group(BaseModel):
    """Base of all groups of settings: they do not change, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSettings(Group):
    """The optimizer of the clients; `momentum` is SGD's."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)

    @field_validator("momentum")
    @classmethod
    def check_momentum(cls, momentum: float, info: ValidationInfo) -> float:
        if momentum and info.data.get("name") != "sgd":
            raise ValueError("only sgd has one")
        return momentum

    def recipe(self) -> Callable[..., torch.optim.Optimizer]:
        """Return a function that makes the optimizer of given parameters."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.name == "sgd":
            return partial(torch.optim.SGD, lr=rate, weight_decay=decay, momentum=self.momentum)
        return partial({"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name], lr=rate, weight_decay=decay)


class RunSettings(Group):
    """Settings of a run of any workload.

    In a round a `fraction` of the `clients` train `local_epochs` each; "natural" clients are those of the corpus.
    `init` is the folder of an earlier run, whose best model this one starts from.
    """

    rounds: int = Field(ge=1)
    clients: int | Literal["natural"] = "natural"
    fraction: float = Field(default=1.0, gt=0, le=1)
    local_epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(ge=1)
    optimizer: OptimizerSettings
    opt_treatment: Literal["RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL"] = "RESET"
    aggregation: Aggregation = Aggregation()
    precision: Literal["float32", "float16"] = "float32"
    validate_every: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)
    keep: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    init: Path | None = None

    @field_validator("clients", mode="before")
    @classmethod
    def check_clients(cls, clients: Any) -> Any:
        if clients == "natural" or (isinstance(clients, int) and clients >= 1):
            return clients
        raise ValueError("it should be a number from 1 on, or natural")

    @field_validator("init")
    @classmethod
    def check_init(cls, init: Path | None) -> Path | None:
        if init is not None and not (init / "model" / "model.safetensors").exists():
            raise ValueError("it has no model/model.safetensors")
        return init


Settings = TypeVar("Settings", bound=RunSettings)


def load_run_settings(kind: type[Settings], path: Path, changes: dict[str, Any]) -> Settings:
    """Return settings of a YAML file, with `changes` by dotted key ("model.frozen") in place of what the file says.

    Raises SettingsError, naming the key, for one that does not exist and for a wrong value.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except TextError as error:
        raise SettingsError(str(error)) from None
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} should hold keys and values")
    for key, value in changes.items():
        _put(content, key, value)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{path}: {'; '.join(map(_describe, error.errors()[:5]))}") from None


def parse_change(text: str) -> tuple[str, Any]:
    """Return the key and the value of "key=value", with a value as in YAML.

    >>> parse_change("model.frozen=false")
    ('model.frozen', False)
    """
    key, equals, value = text.partition("=")
    wrong = SettingsError(f"{text!r} should be key=value, such as optimizer.learning_rate=0.01")
    if not equals or not key.strip():
        raise wrong
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise wrong from None


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for group in groups:
        content = content.setdefault(group, {})
        if not isinstance(content, dict):
            raise SettingsError(f"{key}: '{group}' is a value, not a group of keys")
    content[last] = value


def _describe(fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"there is no key '{key}'"
    return f"{key} is {fault['input']!r:.80}: {fault['msg'].removeprefix('Value error, ')}"
