"""The intake of an experiment: updates and metrics of its envoys are checked, stored and counted here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from openfl_audio.director.aggregate import Contribution, check_finite
from openfl_audio.director.run import Phase, Run
from openfl_audio.director.shortage import telling_lack
from openfl_audio.director.update_file import PassingValues, write_update
from openfl_audio.errors import (
    CallEndedError,
    LackError,
    TensorFormatError,
    TooLargeError,
    UpdateRefusedError,
    WireError,
)
from openfl_audio.privacy.update import masked_header, names_of
from openfl_audio.protocol.aggregate import check_layout
from openfl_audio.protocol.codec import describe_faults, validate
from openfl_audio.protocol.messages import TaskResult, UpdateEnvelope, UpdateMessage
from openfl_audio.protocol.record import sha256_of_names
from openfl_audio.protocol.tensors import Header, TensorFile, Tensors

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# To read and to check so few bytes takes less than a millisecond.
SMALL_BYTES = 1 << 20
# A refusal quotes what was sent, and is kept in the history.
MAX_REASON_CHARACTERS = 500
# An update that has no tensors has this digest of their names.
NO_NAMES = sha256_of_names(())


class SecureSums(Protocol):
    """The secure rounds of an experiment, as far as updates concern them."""

    def takes(self, envoy: str, attempt: int) -> bool:
        """Tell whether an update that was masked for an attempt is awaited."""

    def take_update(self, envoy: str, attempt: int) -> bool:
        """Note that a masked update is there, whole. Returns whether it counts."""

    def metrics(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the metrics that the envoys of the open attempt report, by task."""


@dataclass
class PartialUpdate:
    """The results of an envoy of OpenFL in this round so far: it sends the results of each task by themselves."""

    results: dict[str, TaskResult] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


class Intake:
    """Takes in the updates of an experiment's envoys.

    Attributes:
        partial_updates: updates of which a part has come, by envoy.
        n_bytes: bytes that envoys have sent in this round: updates, and the messages of a secure round's stages.
        secure: the experiment's secure rounds, None where each update is seen.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._folder, self._rounds, self._plan = run, run.folder, run.rounds, run.plan
        self._counted: dict[str, tuple[Path, Header]] = {}
        self.partial_updates: dict[str, PartialUpdate] = {}
        self.n_bytes = 0
        self.secure: SecureSums | None = None

    async def receive(self, sender: UpdateEnvelope, header: Header, chunks: AsyncIterator[bytes]) -> bool:
        """Take in an envoy's update, whose tensors are described by `header` and come as `chunks`.

        Returns whether the update counts. It does not, and is dropped, when it is late, a repetition, or left out
        because its values are too large to add.

        Raises UpdateRefusedError for an update that must not count; then the round continues without this envoy. An
        update that breaks off (BrokenUploadError), or for which the director lacks something (LackError), may be sent
        again.
        """
        if self.is_dropped(sender):
            return False
        try:
            with telling_lack(self._folder.path), self._run.transfers.open("update", sender.envoy):
                counted = await self._take_in(sender, header, chunks)
            self._run.lacks.note_update(sender.envoy, "")
            return counted
        except LackError as error:
            self._run.lacks.note_update(sender.envoy, str(error))
            raise
        except CallEndedError as error:
            logger.info("%s is dropped: %s", sender, error)
            return False
        except UpdateRefusedError as error:
            self.refuse(sender, sender.reason_in(error))
            if isinstance(error, TooLargeError):
                return False
            raise
        except OSError as error:
            self._run.fail(f"the director cannot read or write: {error}")
            return False

    def is_dropped(self, sender: UpdateEnvelope) -> bool:
        """Tell whether an update comes too late, or once more."""
        is_old = self._rounds.is_late_or_repeated(sender.envoy, sender.round)
        phase = self._run.phase
        is_closed = phase is Phase.CLOSED and sender.round == self._rounds.round_number
        is_of_other_attempt = self.secure is not None and not self.secure.takes(sender.envoy, sender.attempt)
        return is_old or is_closed or is_of_other_attempt or phase is Phase.ENDED

    def refuse(self, sender: UpdateEnvelope, reason: str) -> None:
        """Count the sender's update as one that does not count, if the sender still has tasks in this round."""
        if sender.round == self._rounds.round_number and self._rounds.tasks_for(sender.envoy):
            reason = reason[:MAX_REASON_CHARACTERS]
            self._rounds.refuse(sender.envoy, reason)
            self._run.note("refused", round=sender.round, envoy=sender.envoy, reason=reason)
            self.partial_updates.pop(sender.envoy, None)
            self._run.answered.notify()

    def recount(self) -> None:
        """Count the updates that had arrived for the open round before the director was started again."""
        for path in self._folder.updates():
            if self.secure:  # it was masked for an attempt that ended with the director before this one
                self._folder.free_update_file(path)
                continue
            try:
                with TensorFile(path) as file:
                    header = file.header
                update = self._check(validate(header.metadata, UpdateEnvelope), header)
                with self._folder.open_model(self._folder.model) as model:
                    check_finite(path, str(update), header, model)
                self._count(update, header, path, again=True)
            except (TensorFormatError, UpdateRefusedError, WireError) as error:
                logger.info("%s is no update of this round: %s", path.name, error)
                self._folder.free_update_file(path)

    def contributions(self) -> list[Contribution]:
        """Return the updates from which the next model is to be made."""
        clips = dict.fromkeys(sorted(self._counted), 0) if self.secure else self._rounds.trained
        return [Contribution(self._counted[envoy][0], n, self._counted[envoy][1]) for envoy, n in clips.items()]

    def discard(self) -> None:
        """Forget the updates of a round that is over, and free their files for the next one."""
        for path, _ in self._counted.values():
            self._folder.free_update_file(path)
        self.forget()

    def forget(self) -> None:
        """Forget the updates of a round whose files are removed with the end of the experiment."""
        self._counted = {}
        self.partial_updates.clear()

    async def _take_in(self, sender: UpdateEnvelope, header: Header, chunks: AsyncIterator[bytes]) -> bool:
        update = self._check(sender, header)
        path = self._folder.take_update_file()
        counted = False
        try:
            with self._run.live.transfer(update.envoy, "upload", header.data_bytes) as transfer:
                values = PassingValues(header)
                async with aclosing(transfer.counting(chunks)) as counted_chunks:
                    received = await write_update(path, header, counted_chunks, str(sender), values)
            self.n_bytes += received  # not in one line: meanwhile other updates count theirs
            if values.are_doubtful and not self.secure:
                with self._folder.open_model(self._folder.model) as model:
                    await unless_small(header.data_bytes, check_finite, path, str(update), header, model)
            counted = not self.is_dropped(sender)
            if counted and self.secure:
                counted = self._count_masked(self.secure, update, header, path)
            elif counted:
                self._count(update, header, path)
                self._run.answered.notify()
        finally:
            if not counted:
                self._folder.free_update_file(path)
        return counted

    def _check(self, sender: UpdateEnvelope, header: Header) -> UpdateMessage:
        """Raise UpdateRefusedError unless results and tensors are those that the round wants of the sender."""
        try:
            update = UpdateMessage.model_validate(sender, from_attributes=True)
        except ValidationError as error:
            raise UpdateRefusedError(f"{sender}: {describe_faults(error)}") from None
        if self.secure:
            self._check_masked(self.secure, update, header)
            return update
        self._rounds.check(update)
        names = [task.name for task in self._rounds.participants[update.envoy] if task.task_type == "train"]
        trained = any(update.results[name].size for name in names)
        if names and not trained and header.entries:
            raise UpdateRefusedError(f"{update}: trained on 0 clips, and yet there are {len(header.entries)} tensors")
        expected = self._folder.update_header if trained else Header({}, {})
        if self._plan.precision == "float16":
            expected = expected.with_floats_as("<f2")
        check_layout(header, expected, str(update))
        return update

    def _check_masked(self, secure: SecureSums, update: UpdateMessage, header: Header) -> None:
        """Raise UpdateRefusedError unless a masked update has words for the tensors, and its numbers."""
        if update.results:
            raise UpdateRefusedError(f"{update}: has results that are not masked")
        numbers = len(names_of(secure.metrics()))
        check_layout(
            header, masked_header(self._plan, self._folder.model_header, self._rounds.trains, numbers), str(update)
        )

    def _count_masked(self, secure: SecureSums, update: UpdateMessage, header: Header, path: Path) -> bool:
        if not secure.take_update(update.envoy, update.attempt):
            return False
        self._counted[update.envoy] = path, header
        names = sha256_of_names(header.entries)
        self._note("received", update, header, names)
        return True

    def _count(self, update: UpdateMessage, header: Header, path: Path, *, again: bool = False) -> None:
        self._rounds.count(update)
        self._counted[update.envoy] = path, header
        names_sha256 = self._run.names_sha256 if header.entries else NO_NAMES
        self._note("counted_again" if again else "received", update, header, names_sha256)

    def _note(self, event: str, update: UpdateMessage, header: Header, names_sha256: str) -> None:
        about = {"bytes": header.data_bytes, "tensors": len(header.entries), "names_sha256": names_sha256}
        self._run.note(event, round=update.round, envoy=update.envoy, **about)


async def unless_small(size: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that works on `size` bytes, in a thread unless the thread would cost more than the work."""
    return function(*arguments) if size <= SMALL_BYTES else await asyncio.to_thread(function, *arguments)
