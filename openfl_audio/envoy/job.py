"""What an envoy tells its worker."""

from pydantic import BaseModel


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
