"""Job of a worker, and the updates that the envoy writes down."""

from pydantic import BaseModel, ConfigDict, Field


class Job(BaseModel):
    """One experiment for a worker.

    Attributes:
        workspace: the folder it was unpacked into.
        log: the file for the worker's output.
        failure: the file for why the experiment failed, as far as the site tells it.
        shown: whether its site was shown what runs: then objects are built from text, and nothing is unpickled.
    """

    experiment: str
    workspace: str
    log: str
    failure: str
    shown: bool = False


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
