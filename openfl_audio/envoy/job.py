"""What an envoy tells its worker."""

from pydantic import BaseModel


class Job(BaseModel):
    """One experiment for a worker: its name, the folder it was unpacked into, and the file for the worker's output."""

    experiment: str
    workspace: str
    log: str
