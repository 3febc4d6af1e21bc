"""What the director keeps of an experiment on disk. Every file is written under another name, then renamed."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from federation.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL, ExperimentPlan
from federation.wire import Tensors, WireError, pack, unpack


class SubmissionError(ValueError):
    """What a notebook submitted is not an experiment."""


def read_submission(path: Path) -> tuple[ExperimentPlan, bytes, bytes]:
    """The plan, the archive for the envoys and the first global model out of a submitted zip file."""
    try:
        with zipfile.ZipFile(path) as submission:
            plan, archive, model = (submission.read(name) for name in (EXPERIMENT_PLAN, ARCHIVE, INITIAL_MODEL))
        return ExperimentPlan.model_validate_json(plan), archive, model
    except ValidationError as error:
        raise SubmissionError(
            "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        ) from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise SubmissionError(f"not an experiment of this project's notebooks: {error}") from error


class RunFolder:
    """The folder of one experiment: `workspace.zip`, `history.jsonl`, and the models `initial`, `last` and `best`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    @classmethod
    def create(cls, path: Path, plan: ExperimentPlan, archive: bytes, model: Tensors) -> "RunFolder":
        """Raises SubmissionError if the experiment's name was used before: nothing is ever overwritten."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise SubmissionError(f"an experiment named '{plan.name}' exists already: choose another name") from None
        folder = cls(path)
        folder._write(EXPERIMENT_PLAN, plan.model_dump_json(indent=2).encode())
        folder._write(ARCHIVE, archive)
        folder.save_model("initial", model, round_number=0)
        folder.save_model("last", model, round_number=0)
        return folder

    @property
    def archive(self) -> Path:
        return self.path / ARCHIVE

    def save_model(self, which: str, model: Tensors, round_number: int) -> None:
        self._write(f"{which}.safetensors", pack(model, {"round": round_number}))

    def load_model(self, which: str) -> bytes:
        """Safetensors bytes of model 'initial', 'last' or 'best'. Raises WireError if there is none yet."""
        try:
            return (self.path / f"{which}.safetensors").read_bytes()
        except FileNotFoundError:
            raise WireError(f"experiment '{self.path.name}' has no {which} model yet") from None

    def append_history(self, record: dict[str, Any]) -> None:
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.history.append(record)

    def _write(self, name: str, data: bytes) -> None:
        temporary = self.path / f".{name}.partial"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / name)


def first_model(data: bytes) -> Tensors:
    """Raises SubmissionError if `data` is not a model."""
    try:
        tensors, _ = unpack(data)
    except WireError as error:
        raise SubmissionError(f"the first global model is {error}") from error
    if not tensors:
        raise SubmissionError("the first global model has no trained tensor: does any parameter require a gradient?")
    return tensors
