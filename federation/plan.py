"""What a director must know of an experiment. It reads this; it never unpickles what a notebook sent."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# The name becomes a folder on director and envoys, so it can be nothing that leads out of one.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Names of files in an experiment's archive.
PLAN_FILE = "plan/plan.yaml"
ENVIRONMENT_FILE = "environment.json"
# Names of files in what a notebook submits: the archive for the envoys, the first global model, and this module's plan.
ARCHIVE, INITIAL_MODEL, EXPERIMENT_PLAN = "workspace.zip", "initial.safetensors", "experiment.json"


class Task(BaseModel):
    """One task an envoy runs in a round, in the words of OpenFL's interactive API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    function_name: str
    task_type: Literal["train", "validate"]
    apply_local: bool = False


class BestModel(BaseModel):
    """The best global model is chosen by this metric of the validation task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    direction: Literal["max", "min"]

    def is_better(self, value: float | None, than: float | None) -> bool:
        """None stands for a model that nobody has validated."""
        if value is None or than is None:
            return value is not None
        return value > than if self.direction == "max" else value < than


class ExperimentPlan(BaseModel):
    """An experiment as the director sees it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    federation_uuid: str
    envoys: list[str] = Field(min_length=1)
    rounds: int = Field(ge=1)
    tasks: list[Task] = Field(min_length=1)
    best: BestModel

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"experiment name {name[:80]!r}: use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
            )
        return name

    def tasks_for_round(self, round_number: int) -> list[Task]:
        """Validation of the global model, then training; after the last round the final model is validated too."""
        if round_number < self.rounds:
            return self.tasks
        return [task for task in self.tasks if task.task_type == "validate" and not task.apply_local]
