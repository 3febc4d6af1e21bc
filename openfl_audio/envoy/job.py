"""What an envoy tells its worker."""

from pydantic import BaseModel


class Job(BaseModel):
    """One experiment for a worker.

    Attributes:
        workspace: the folder it was unpacked into.
        log: the file for the worker's output.
        shown: whether its site was shown what runs: then objects are built from text, and nothing is unpickled.
    """

    experiment: str
    workspace: str
    log: str
    shown: bool = False
