"""The base of what travels as JSON inside an experiment's plan."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Base of the parts of a plan: frozen, without unknown keys, and finite, as JSON has no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
