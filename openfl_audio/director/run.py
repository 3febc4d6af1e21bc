"""The run of one experiment: its state, what it waits for, and how it ends. Scheduler, intake and view work on it."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from functools import cached_property
from typing import Any

from openfl_audio.director.calls import Transfers
from openfl_audio.director.live import Clock, Live
from openfl_audio.director.notification import Changes
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.director.shortage import RETRY_SECONDS, Lacks, telling_lack
from openfl_audio.director.task_logs import TaskLogs
from openfl_audio.director.totals import Totals
from openfl_audio.errors import LackError
from openfl_audio.protocol.messages import APPROVAL
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.record import Record, sha256_of_names
from openfl_audio.protocol.rounds import Rounds

logger = logging.getLogger(__name__)

# Sites that are named where an experiment waits for the approval of many.
MOST_AWAITED = 5


class Phase(Enum):
    """The present phase of an experiment."""

    CLOSED = "no round is open: the experiment is pending, or between two rounds"
    OPEN = "a round is open: its participants have tasks, and their updates are taken in"
    ENDED = "no round will be opened any more"


class Run:
    """The state of an experiment, shared by the parts that work on it.

    Attributes:
        folder: the experiment's files, its state on disk among them.
        record: the director's record.
        rounds: the bookkeeping of the current round.
        envoys: all envoys that may make calls about the experiment: its members, and those that have departed, which
            hear so.
        lacks: what the director lacks at the moment, and the experiment waits for.
        transfers: open transfers of the experiment's models and updates.
        awaiting_approval: the envoys whose sites have to approve the experiment before they take part.
        live: what the envoys do at the moment.
        logs: what tasks printed, of sites that let it leave.
        clock: what their parts of the round took.
        answered: notified when an envoy has answered, or will not answer in this round.
        news: notified when there is something new for those who follow the history.
        totals: sums over the rounds of all experiments.
    """

    def __init__(self, folder: RunFolder, record: Record, totals: Totals | None = None) -> None:
        self.folder = folder
        self.totals = totals or Totals()
        self.record = record
        self.state = folder.state
        self.plan: ExperimentPlan = folder.plan
        self.owner = folder.state.owner
        self.rounds = Rounds(self.plan, self.state.progress)
        self.rounds.registered = self.state.registered
        self.envoys = {*self.state.members, *self.state.departed}
        self.transfers = Transfers()
        self.awaiting_approval: set[str] = set()
        self.live, self.clock = Live(), Clock()
        self.logs = TaskLogs(folder.path / "logs")
        # Apart: with hundreds of envoys, what concerns one of them must not wake hundreds.
        self.answered = Changes()
        self.news = Changes()
        self._tasks: defaultdict[str, Changes] = defaultdict(Changes)  # an envoy has no more to wait for its tasks
        name = f"experiment '{self.plan.name}'"
        self.lacks = Lacks(folder.path, name, lambda: self.ended, self._announce_lack)
        self._queue = ""
        self._is_open = False
        self._saving: asyncio.Task | None = None

    @property
    def ended(self) -> bool:
        """Tell whether the experiment has finished, failed or been stopped."""
        return self.state.ended

    @property
    def phase(self) -> Phase:
        """Return what the experiment does at the moment."""
        if self.ended:
            return Phase.ENDED
        return Phase.OPEN if self._is_open else Phase.CLOSED

    @property
    def waits(self) -> str:
        """Return what the experiment waits for, or "".

        That is envoys before it begins, then what the director lacks, then sites that have to approve it.
        """
        return self._queue if self.state.status is Status.PENDING else self.lacks.first or self._approvals()

    def _approvals(self) -> str:
        """Return which participants of the open round have no approval of their sites yet, or ""."""
        if self.phase is not Phase.OPEN:
            return ""
        awaited = [name for name in sorted(self.awaiting_approval) if self.rounds.tasks_for(name)]
        more = [f"{len(awaited) - MOST_AWAITED} more"] if len(awaited) > MOST_AWAITED else []
        return APPROVAL + ", ".join(awaited[:MOST_AWAITED] + more) if awaited else ""

    def note_approval(self, envoy: str, waits: bool) -> None:
        """Note whether the experiment waits for the approval of the site of `envoy`."""
        if waits != (envoy in self.awaiting_approval):
            self.awaiting_approval ^= {envoy}
            self.news.notify()

    def note(self, event: str, **fields: Any) -> None:
        """Note an event of this experiment in the director's record."""
        self.record.note(event, experiment=self.plan.name, **fields)

    @cached_property
    def names_sha256(self) -> str:
        """Return the digest of the names of the model's tensors, which an update with tensors has as well."""
        return sha256_of_names(self.folder.update_header.entries)

    def note_queue(self, reason: str) -> None:
        """Note for which envoys the experiment, which is pending, waits, and why."""
        if reason != self._queue:
            self._queue = reason
            self.news.notify()

    def open_round(self) -> None:
        """Let the round's participants have their tasks and send their updates."""
        self._is_open = True
        self.news.notify()
        self.wake(self.rounds.participants)

    def close_round(self) -> None:
        """Take in no more updates in this round, and end transfers of its model and its updates."""
        self._is_open = False
        self._end_transfers()

    async def wait_for_news_of_tasks(self, envoy: str, seconds: float) -> None:
        """Wait until `envoy` may have tasks, or has none to wait for any more, but no longer than `seconds`."""
        await self._tasks[envoy].wait(seconds)

    def wake(self, envoys: Iterable[str]) -> None:
        """Wake those of `envoys` that wait for tasks."""
        for envoy in envoys:
            if envoy in self._tasks:
                self._tasks[envoy].notify()

    def fail(self, reason: str) -> None:
        """End the experiment as failed, unless it has ended already."""
        self.end(Status.FAILED, reason)

    def stop(self) -> None:
        """End the experiment as its owner wishes, unless it has ended already."""
        self.end(Status.STOPPED)

    def end(self, status: Status, error: str = "") -> None:
        """End the experiment, tell everybody who waits for something of it, and write it down."""
        if self.ended:
            return
        self.state.status, self.state.error, self.state.ended_at = status, error, time.time()
        self.answered.notify()
        self.news.notify()
        self.wake(self._tasks)
        self._end_transfers()
        self.note("ended", status=status.value, rounds=self.rounds.round_number, reason=error.partition("\n")[0][:500])
        self.save_soon()
        level = logging.ERROR if error else logging.INFO
        logger.log(level, "experiment '%s' is %s%s", self.plan.name, status.value, f": {error}" if error else "")

    @property
    def is_saved(self) -> bool:
        """Tell whether the state is written down."""
        return self._saving is None

    def save_soon(self) -> None:
        """Write the state down: now, or as soon as the director has what it lacks for that."""
        try:
            with telling_lack(self.folder.path):
                self._save()
        except LackError as error:
            logger.warning("the state of experiment '%s' is written down later: %s", self.plan.name, error)
            if self._saving is None:
                self._saving = asyncio.create_task(self._save_later())
        except OSError as error:
            logger.error("the state of experiment '%s' cannot be written down: %s", self.plan.name, error)

    async def _save_later(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                with telling_lack(self.folder.path):
                    self._save()
                break
            except LackError:
                continue
        self._saving = None

    def _save(self) -> None:
        if self.ended:
            # First what makes room.
            self.folder.delete_updates()
            self.folder.link_model("last")
        self.folder.save_state()
        if self.state.status is Status.FINISHED:
            # A director that is killed before it has written down the end needs the archive to resume the experiment.
            self.folder.delete_archive()

    def _end_transfers(self) -> None:
        # A user's copy of a model has nothing to do with the round.
        self.transfers.end_all(self.envoys, "the round has ended")

    def _announce_lack(self) -> None:
        self.news.notify()
        if self.lacks.of_round:
            self.wake(self._tasks)
