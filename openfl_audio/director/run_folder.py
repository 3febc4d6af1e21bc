"""The folder of an experiment on the director: all that is needed to resume it after a kill at any moment.

    experiment.json      the plan
    state.json           status, round, participants; replacing it is what makes a round count
    workspace.zip        what the envoys get, until the experiment has finished
    history.jsonl        one record a round
    models/N.safetensors the global model after N aggregations, and `N.optimizer.safetensors` with a server optimizer
    updates/             the current round's updates, one file each; the files are reused in the next round
    initial, last, best, best-METRIC, round-R .safetensors   links to models, for people
    tensorboard/         the history once more
    logs/                what tasks printed, by envoy, where sites let it leave

No file counts before it is whole: it is written under another name, then renamed. An update gets the length at its
front, without which it is none, at its end.
"""

import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from openfl_audio.director.submission import extract_submission
from openfl_audio.errors import (
    FormatError,
    RunFolderError,
    SubmissionError,
    TensorFormatError,
    WireError,
)
from openfl_audio.files import Journal, sync_folder, write_whole
from openfl_audio.formats import check_format, written_by
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.low_rank import is_given
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, ExperimentPlan
from openfl_audio.protocol.record import sha256_of_file
from openfl_audio.protocol.rounds import Progress
from openfl_audio.protocol.shard_sizes import Sizes
from openfl_audio.protocol.tensors import Header, TensorFile

logger = logging.getLogger(__name__)

STATE = "state.json"
# Format of a folder, which its state names. A folder of a later one is refused.
STATE_FORMAT = 1
# Folders that are not finished: a submission on its way, or on its way out.
UNFINISHED = ".new-"


class Status(str, Enum):
    """OpenFL's words for the state of an experiment, and one for those that their owner stopped."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class State(BaseModel):
    """The state of an experiment, which changes.

    Attributes:
        format: how the folder is to be read; see `openfl_audio.formats`.
        version: the version of openfl-audio that wrote the file, "" before it said so.
        members: the envoys that may take part in the next round.
        departed: the envoys that have left the experiment, with the reason.
        dropped: those among them that stay out when the experiment is resumed.
        registered: the sizes of the shards when their envoys became members.
        participants: the participants of the open round, None between two rounds.
        boot: names the time since the machine was started; see `boot_id`.
        progress: how far the rounds are.
        ended_at: when the experiment ended, in seconds of the clock.
        secure_attempt: the last attempt of the open round, where its updates are summed in secret; 0 before the first.
        secure_survivors: the envoys whose sum may have been unmasked in that round, none before.
    """

    # Keys of another version of the director are kept, within a format.
    model_config = ConfigDict(extra="allow")

    format: int = STATE_FORMAT
    version: str = ""
    owner: str
    submitted: float
    status: Status = Status.PENDING
    error: str = ""
    members: list[str] = []
    # The second names are those of version 0.1.0.
    departed: dict[str, str] = Field(default={}, validation_alias=AliasChoices("departed", "left"))
    dropped: list[str] = []
    registered: dict[str, Sizes] = {}
    participants: list[str] | None = Field(default=None, validation_alias=AliasChoices("participants", "asked"))
    boot: str = ""
    progress: Progress = Progress()
    ended_at: float | None = None
    secure_attempt: int = 0
    secure_survivors: list[str] = []

    @property
    def ended(self) -> bool:
        """Tell whether no round will be opened any more."""
        return self.status in (Status.FINISHED, Status.FAILED, Status.STOPPED)


class RunFolder:
    """The files of one experiment.

    Attributes:
        path: the folder.
        plan: the plan of the experiment.
        state: its state, which counts once `save_state` has written it.
        history: the records of its rounds.
        hashes: the SHA-256 of what was submitted, where this is a new experiment.
    """

    def __init__(self, path: Path, plan: ExperimentPlan, state: State) -> None:
        self.path, self.plan, self.state = path, plan, state
        self.hashes: dict[str, str] = {}
        self.history = Journal(path / "history.jsonl", state.progress.round_number)
        self._free_updates: set[Path] = set()
        self._readers: Counter[int] = Counter()

    @classmethod
    def create(cls, runs: Path, submission: Path, owner: str) -> "RunFolder":
        """Make a folder that counts once it is accepted. Raises SubmissionError if it is no experiment."""
        new = runs / f"{UNFINISHED}{uuid.uuid4().hex}"
        (new / "models").mkdir(parents=True)
        (new / "updates").mkdir()
        try:
            plan = extract_submission(submission, new)
            folder = cls(new, plan, State(owner=owner, submitted=time.time()))
            folder.link_model("initial")
            folder.link_model("last")
            folder.hashes = {
                "archive_sha256": sha256_of_file(folder.archive),
                "plan_sha256": sha256_of_file(new / EXPERIMENT_PLAN),
                "model_sha256": sha256_of_file(folder.model),
            }
        except BaseException:
            shutil.rmtree(new)
            raise
        return folder

    def accept(self, members: list[str], registered: dict[str, Sizes]) -> None:
        """Publish the experiment under its name, to run on `members`: all of that at once, or nothing.

        Raises SubmissionError if the name was used before: nothing is ever overwritten.
        """
        self.state.members, self.state.registered = members, registered
        self.save_state()
        # Under its name it must be whole also after a power cut.
        for folder in (self.path / "models", self.path):
            sync_folder(folder)
        named = self.path.with_name(self.plan.name)
        try:
            self.path.rename(named)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise SubmissionError(
                f"an experiment named '{self.plan.name}' exists already: choose another name"
            ) from None
        self.path = named
        self.history = Journal(named / "history.jsonl")
        sync_folder(named.parent)

    def discard(self) -> None:
        """Remove what was not accepted."""
        shutil.rmtree(self.path)

    @classmethod
    def load(cls, path: Path) -> "RunFolder":
        """Return an experiment as it was when the director stopped.

        Raises RunFolderError, naming the file and the fault.
        """
        state = read_state(path)
        plan = _read(path / EXPERIMENT_PLAN, ExperimentPlan, state.version)
        for part in (state, state.progress):
            if part.model_extra:
                unknown = sorted(part.model_extra)
                logger.warning("%s: unknown keys %s are kept as they are", path / STATE, unknown)
        try:
            folder = cls(path, plan, state)
            folder._clean_up()
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error}") from error
        folder._check_models()
        return folder

    def _clean_up(self) -> None:
        """Remove what a director that was killed left behind, and keep the rest from other users of the machine."""
        self.path.chmod(0o700)
        for leftover in self.path.rglob(".*.partial"):
            leftover.unlink()
        if self.state.ended or self.state.boot != boot_id():
            # Writes of a killed process are on the disk. Those under way when the machine went down may be incomplete.
            for update in self.updates():
                update.unlink()
        if self.state.status is Status.FINISHED:
            self.delete_archive()

    def _check_models(self) -> None:
        """Give up unless the current model and its optimizer's state are there, whole, and those of their round."""
        aggregations = self.state.progress.aggregations
        needed = [self.model]
        if aggregations and self.plan.aggregation.server_optimizer:
            needed.append(self.optimizer_after(aggregations))
        for path in needed:
            try:
                with TensorFile(path) as model:
                    found = model.header.metadata.get("aggregations")
                # The first one is as the notebook sent it.
                if aggregations and found != aggregations:
                    raise TensorFormatError(f"it is the one after {found} aggregations, not after {aggregations}")
            except (OSError, TensorFormatError) as error:
                self._give_up(f"{path} cannot be used: {error}")
                return
        try:
            self.link_model("last")
        except OSError as error:
            self._give_up(f"{self.path} cannot be written to: {error}")

    def resumed(self) -> "RunFolder":
        """Return the experiment, which failed or was stopped, as one that continues after its last whole round.

        Its members are those of before and the envoys that it failed on, without those that were dropped. Raises
        RunFolderError if something is missing that it needs.
        """
        if not self.archive.exists():
            raise RunFolderError(f"{self.archive}, which the envoys need, is not there any more")
        departed = {envoy: self.state.departed[envoy] for envoy in self.state.dropped}
        members = sorted({*self.state.members, *self.state.departed} - {*departed})
        changes = {"status": Status.PENDING, "error": "", "ended_at": None, "participants": None}
        state = self.state.model_copy(update=changes | {"members": members, "departed": departed})
        folder = RunFolder(self.path, self.plan, state)
        folder._readers = self._readers  # of a model that is being downloaded
        folder._check_models()
        if folder.state.ended:
            raise RunFolderError(folder.state.error)
        folder.save_state()
        return folder

    def _give_up(self, reason: str) -> None:
        """Fail the experiment, which cannot be resumed. That is not written down, as the file may be put back."""
        logger.error("experiment '%s': %s", self.plan.name, reason)
        if not self.state.ended:
            self.state.status, self.state.error = Status.FAILED, reason

    @property
    def archive(self) -> Path:
        """Return the file that the envoys download."""
        return self.path / ARCHIVE

    @property
    def model(self) -> Path:
        """Return the file of the global model that the current round began with."""
        return self.model_after(self.state.progress.aggregations)

    def model_after(self, aggregations: int) -> Path:
        """Return the file of the global model after this many aggregations."""
        return self.path / "models" / f"{aggregations}.safetensors"

    def optimizer_after(self, aggregations: int) -> Path:
        """Return the file of the server optimizer's state after this many aggregations."""
        return self.path / "models" / f"{aggregations}.optimizer.safetensors"

    def named_model(self, which: str) -> Path:
        """Return the file of model 'initial', 'last' or one of the best. Raises WireError if there is none yet."""
        path = self.model if which == "last" else self.path / f"{which}.safetensors"
        names = ("initial", "last", *self.plan.best.models)
        if which not in names:
            raise WireError(f"there is no model {which[:80]!r}: ask for one of {names}")
        if not path.exists():
            raise WireError(f"experiment '{self.plan.name}' has no {which} model yet")
        return path

    @contextmanager
    def open_model(self, path: Path, header: Header | None = None) -> Iterator[TensorFile]:
        """Open a model that is read chunk by chunk, as slowly as its reader may be.

        Until it is closed, its file is not written over.
        """
        with TensorFile(path, header) as model:
            self._readers[model.inode] += 1
            try:
                yield model
            finally:
                self._readers[model.inode] -= 1

    def outdated_model(self) -> Path | None:
        """Return the model before the current one, if it is not being read under any of its names."""
        path = self.model_after(self.state.progress.aggregations - 1)
        return path if path.exists() and not self._readers[path.stat().st_ino] else None

    def link_model(self, name: str) -> None:
        """Keep the current model under `name` too. A link costs nothing, however large the model is."""
        # Not `files.replacing`: a link is made where there is no file.
        temporary = self.path / f".{name}.partial"
        temporary.unlink(missing_ok=True)
        os.link(self.model, temporary)
        temporary.rename(self.path / f"{name}.safetensors")
        temporary.unlink(missing_ok=True)  # renaming a link to another one of the same file does nothing

    def keep_round(self, round_number: int) -> None:
        """Keep the current model as that of `round_number`, and forget those before the last `keep` ones."""
        if self.plan.keep:
            self.link_model(f"round-{round_number}")
            (self.path / f"round-{round_number - self.plan.keep}.safetensors").unlink(missing_ok=True)

    def delete_old_models(self) -> None:
        """Remove all models but the current one and the one before.

        After a power cut, `state.json` may be that of a moment ago.
        """
        current = self.state.progress.aggregations
        kept = {path(n) for path in (self.model_after, self.optimizer_after) for n in (current, current - 1)}
        for path in (self.path / "models").iterdir():
            if path not in kept:
                path.unlink()

    @cached_property
    def model_header(self) -> Header:
        """Return the header that the files of all global models have in common, save for their metadata."""
        with TensorFile(self.model) as model:
            return model.header

    @cached_property
    def update_header(self) -> Header:
        """Return the header of an update that has all tensors which nodes send."""
        entries = self.model_header.entries.items()
        return Header.lay_out({name: (e.dtype, e.shape) for name, e in entries if not is_given(name)}, {})

    def updates(self) -> list[Path]:
        """Return the files of updates, whole or not."""
        return sorted((self.path / "updates").glob("*"))

    def take_update_file(self) -> Path:
        """Return a file for an update that is about to arrive: a free one, or a new one.

        A free file has memory and disk blocks already.
        """
        if self._free_updates:
            return self._free_updates.pop()
        path = self.path / "updates" / f"{uuid.uuid4().hex}.safetensors"
        path.touch()
        return path

    def free_update_file(self, path: Path) -> None:
        """Keep a file for the next update, or delete it where each member has one."""
        if path in self._free_updates:
            return
        if self.state.ended or len(self._free_updates) >= len(self.state.members):
            path.unlink(missing_ok=True)
        else:
            self._free_updates.add(path)

    def delete_updates(self) -> None:
        """Remove the files of all updates of an experiment that has ended."""
        self._free_updates.clear()
        for path in self.updates():
            path.unlink(missing_ok=True)

    def delete_archive(self) -> None:
        """Remove what the envoys download, which is not needed once the experiment has finished."""
        self.archive.unlink(missing_ok=True)

    def save_state(self) -> None:
        """Bring the state to the disk for certain.

        Only then may the files that the state before it names be used again.
        """
        self.state.boot, self.state.format, self.state.version = boot_id(), STATE_FORMAT, written_by()
        write_whole(self.path / STATE, self.state.model_dump_json(indent=2).encode(), durable=True)


def owner_of(path: Path) -> str:
    """Return who submitted the experiment in a folder that cannot be loaded, or an empty name if that is unknown."""
    try:
        owner = _content((path / STATE).read_bytes()).get("owner")
    except OSError:
        return ""
    return owner if isinstance(owner, str) else ""


def read_state(path: Path) -> State:
    """Return the state of an experiment from its folder. Raises RunFolderError, naming the file and the fault."""
    return _read(path / STATE, State)


Part = TypeVar("Part", bound=BaseModel)


def _read(path: Path, kind: type[Part], writer: str = "") -> Part:
    """Return a file, which version `writer` of openfl-audio wrote, as a `kind`. Raises RunFolderError."""
    try:
        data = path.read_bytes()
        check_format(path, _content(data), STATE_FORMAT)
        return kind.model_validate_json(data)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error
    except FormatError as error:
        raise RunFolderError(str(error)) from error
    except ValidationError as error:
        this = f"openfl-audio {written_by()}" + (f" (openfl-audio {writer} wrote it)" if writer else "")
        raise RunFolderError(f"{path} cannot be used by {this}: {describe_faults(error)}") from error


def _content(data: bytes) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one if there is none."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def boot_id() -> str:
    """Return a name of the time since the machine was started, "" where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
