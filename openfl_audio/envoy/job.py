"""What an envoy tells its worker."""

from pydantic import BaseModel


class Job(BaseModel):
    """One experiment: its name, the folder it was unpacked into, and the file that gets the worker's output."""

    experiment: str
    workspace: str
    log: str
