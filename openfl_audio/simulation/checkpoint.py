"""The checkpoint of a simulation: its history, its models, and all that another process needs to resume it."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from openfl_audio.errors import TensorFormatError
from openfl_audio.files import Journal, claim, make_folder, replacing
from openfl_audio.notebook.experiment import Definition
from openfl_audio.protocol.aggregate import Aggregator
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.rounds import Progress
from openfl_audio.protocol.tensors import TensorFile, Tensors, bytes_of, write_tensors

logger = logging.getLogger(__name__)

# At most the rounds of so many seconds are lost when the process is killed. Saving takes longer than a quick round.
SECONDS_BETWEEN_CHECKPOINTS = 10.0
# Parts of a checkpoint; the others are the best models.
LAST, MOMENTS = "last", "moments"


class Checkpoint:
    """A folder from which a simulation resumes.

        experiment.json          the plan, and a hash of the first global model
        history.jsonl            a record a round
        checkpoint.safetensors   the last and the best models, the server optimizer's state, and how far the rounds are
        round-N.safetensors      the global model that round N led to, of the last `keep` rounds

    The checkpoint is what counts: rounds after it are run again, to the same result.

    Attributes:
        progress: how far the rounds are.
        model: the last global model.
        moments: the state of the server optimizer.
        best: the best models by name.
        history: the records of the rounds.
    """

    def __init__(self, folder: Path, definition: Definition) -> None:
        """Begin the experiment, or resume it. Raises FolderInUseError if the folder is another one's."""
        self.folder = folder
        self.keep = definition.plan.keep
        self.progress = Progress()
        self.model, self.moments = definition.tensors, Tensors()
        self.best: dict[str, Tensors] = {}
        make_folder(folder)
        claim(folder / "experiment.json", _describe(definition), "an experiment", "give another folder")
        if self._path.exists():
            self._load()
        self._journal = Journal(folder / "history.jsonl", self.progress.round_number)
        self._journal.cut()
        self.history = list(self._journal)
        self._saved = time.monotonic()

    def keep_best(self, which: str, model: Tensors) -> None:
        """Keep a copy of `model` as the best one under the name `which`."""
        best = self.best.setdefault(which, {})
        for name, tensor in model.items():
            # Into memory that is there: fresh memory takes longer than copying.
            np.copyto(best.setdefault(name, np.empty_like(tensor)), tensor)

    def close_round(self, record: dict[str, Any], aggregator: Aggregator, progress: Progress, at_once: bool) -> None:
        """Note the record of a round; save the rest now and then, or `at_once`."""
        self.history.append(record)
        self._journal.append(record, durable=False)
        self.model, self.moments, self.progress = aggregator.model, aggregator.moments, progress
        if self.keep:
            _write(self.folder / f"round-{record['round']}.safetensors", self.model, {})
            (self.folder / f"round-{record['round'] - self.keep}.safetensors").unlink(missing_ok=True)
        if at_once or time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS:
            self.save()

    def save(self) -> None:
        """Bring the history, the models and the progress to the disk."""
        self._journal.make_durable()
        parts = {LAST: self.model, MOMENTS: self.moments, **self.best}
        tensors = {f"{part}.{name}": tensor for part, of_part in parts.items() for name, tensor in of_part.items()}
        _write(self._path, tensors, self.progress.model_dump())
        self._saved = time.monotonic()

    @property
    def _path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def _load(self) -> None:
        try:
            with TensorFile(self._path) as file:
                tensors, self.progress = file.load(), Progress.model_validate(file.header.metadata)
        except TensorFormatError as error:
            raise ValueError(f"{self._path} cannot be used: {error}: give another folder") from error
        except ValidationError as error:
            raise ValueError(f"{self._path} cannot be used: {describe_faults(error)}: give another folder") from error
        if self.progress.model_extra:
            logger.warning("%s: unknown keys %s are kept as they are", self._path, sorted(self.progress.model_extra))
        parts: dict[str, Tensors] = {LAST: {}, MOMENTS: {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.model, self.moments, self.best = parts.pop(LAST), parts.pop(MOMENTS), parts


def _describe(definition: Definition) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(definition.tensors.items()):
        digest.update(name.encode() + bytes_of(tensor))
    return definition.plan.model_dump(mode="json") | {
        "opt_treatment": definition.opt_treatment,
        "local_tensors": list(definition.model_provider.local_tensors),
        "first_model": digest.hexdigest(),
    }


def _write(path: Path, tensors: Tensors, metadata: dict[str, Any]) -> None:
    with replacing(path, durable=True) as temporary:
        write_tensors(temporary, tensors, metadata)
