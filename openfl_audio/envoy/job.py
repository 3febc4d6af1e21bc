"""Job of a worker, and the updates that the envoy writes down."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from openfl_audio.envoy.settings import ShardDescriptorSettings


class Job(BaseModel):
    """One experiment for a worker.

    Attributes:
        envoy: its name.
        room: the folder with the experiment's workspace and state, as the worker sees it.
        shard_descriptor: what to make of the recordings; `folder` is that of the envoy's settings.
        shown: whether its site was shown what runs: then objects are built from text, and nothing is unpickled.
        reports, task_timeout_seconds: as in the envoy's settings, whose file a worker does not read.
    """

    experiment: str
    envoy: str
    room: str
    shard_descriptor: ShardDescriptorSettings
    folder: str
    shown: bool
    reports: Literal["nothing", "steps", "losses", "logs"]
    task_timeout_seconds: float | None


class Sending(BaseModel):
    """An update that is about to be sent, as the record has it.

    Attributes:
        bytes: those of its tensors.
        tensors: how many there are.
        names_sha256: the digest of their names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    round: int = Field(ge=0)
    bytes: int = Field(ge=0)
    tensors: int = Field(ge=0)
    names_sha256: str = Field(pattern="^[0-9a-f]{64}$")
