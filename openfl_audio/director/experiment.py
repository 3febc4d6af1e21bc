"""One experiment on the director: its rounds, whoever waits for them, and what is kept of it."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from openfl_audio.director.aggregate import Contribution, check_finite, check_layout, fold
from openfl_audio.director.calls import Endable
from openfl_audio.director.notification import Changes
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.director.shortage import telling_lack
from openfl_audio.director.tensorboard import TensorBoard
from openfl_audio.director.update_file import write_update
from openfl_audio.errors import (
    CallEndedError,
    LackError,
    NotFiniteError,
    RoundFailedError,
    TensorFormatError,
    TooLargeError,
    UpdateRefusedError,
)
from openfl_audio.protocol.plan import ExperimentPlan, Task
from openfl_audio.protocol.rounds import Rounds
from openfl_audio.protocol.shard_sizes import Sizes
from openfl_audio.protocol.tensors import Header, TensorFile, Tensors
from openfl_audio.protocol.wire import TaskResult, UpdateEnvelope, UpdateMessage, describe_faults, encode

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A long poll is answered after this many seconds even if there is nothing to say, so that dead peers are noticed.
LONG_POLL_SECONDS = 20.0
# Between two attempts at what the director lacked something for.
LACK_SECONDS = 1.0
TRANSFERS_OF_A_KIND = 2
# To read and to check so few bytes takes less than a millisecond.
SMALL_BYTES = 1 << 20
# A refusal quotes what was sent, and is kept in the history.
MAX_REASON_CHARACTERS = 500


class EndedError(RuntimeError):
    """The experiment ended while something of it waited."""


@dataclass
class PartialUpdate:
    """The results of an envoy of OpenFL in this round so far: it sends the results of each task by themselves."""

    results: dict[str, TaskResult] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


class Experiment:
    def __init__(self, folder: RunFolder, is_online: Callable[[str], bool]) -> None:
        self.folder = folder
        self.state = folder.state
        self.plan: ExperimentPlan = folder.plan
        self.owner = folder.state.owner
        self.rounds = Rounds(self.plan, self.state.progress)
        self.rounds.registered = self.state.registered
        self.participants = {*self.state.members, *self.state.left}  # those it is open to; also who left, to hear so
        self._is_online = is_online
        # Apart: with hundreds of envoys, what concerns one of them must not wake hundreds.
        self._answers = Changes()  # somebody has answered, or will not
        self._news = Changes()  # for those who follow the history
        self._tasks: defaultdict[str, Changes] = defaultdict(Changes)  # an envoy has no more to wait for its tasks
        self._updates: dict[str, tuple[Path, Header]] = {}  # those that count
        self.partial_updates: dict[str, PartialUpdate] = {}
        self._accepts_updates = False
        self._lacks: dict[str, str] = {}  # what the director lacks, by what waits for it
        self._saving: asyncio.Task | None = None
        self._transfers: dict[tuple[str, str], list[Endable]] = {}
        self._opened = time.monotonic()
        self.bytes_up = self.bytes_down = 0

    @property
    def ended(self) -> bool:
        return self.state.ended

    @property
    def is_held_up(self) -> bool:
        """Tell whether the round cannot end before an envoy that is gone has come back."""
        away = [envoy for envoy in self.rounds.asked if self.rounds.tasks_for(envoy) and not self._is_online(envoy)]
        if self.plan.participation.deadline_seconds is None:
            return bool(away)
        return bool(away) and len(self.rounds.asked) - len(away) < self.rounds.quorum

    async def run(self, others_may_run: Callable[[], Any]) -> None:
        """All rounds that are still to come.

        `others_may_run` is called when the envoys are free, or held up by one that is gone, however that came about.
        """
        if self.ended:
            return  # stopped before it began
        try:
            tensorboard = TensorBoard(self.folder.path / "tensorboard", self.rounds.round_number)
            await self._run_rounds(tensorboard, others_may_run)
        except EndedError:
            pass  # it was stopped while it waited
        except (RoundFailedError, NotFiniteError) as error:
            self.fail(str(error))
        except OSError as error:
            self.fail(f"the director cannot read or write: {error}")
        except Exception as error:
            logger.exception("experiment '%s'", self.plan.name)
            self.fail(f"fault in the director: {type(error).__name__}: {error}")
        others_may_run()

    async def _run_rounds(self, tensorboard: TensorBoard, others_may_run: Callable[[], Any]) -> None:
        name, members = self.plan.name, ", ".join(self.state.members)
        logger.info("experiment '%s' runs from round %d on %s", name, self.rounds.round_number, members)
        self.state.status = Status.IN_PROGRESS
        while not self.ended and not self.rounds.finished:
            await self._open_round()
            if self.is_held_up:
                others_may_run()
            await self._wait_until_complete()
            if not self.ended:
                self.rounds.check_answers()
                if self.rounds.trained:
                    aggregations = self.rounds.progress.aggregations + 1
                    await self._insist(lambda: asyncio.to_thread(self._fold, aggregations))  # noqa: B023
            # It may have been stopped meanwhile. Then the round does not count.
            if not self.ended:
                record = await self._close_round()
                await self._insist(lambda: tensorboard.add(record))  # noqa: B023
        if not self.ended:
            await self._insist(self.folder.save_state)
            self._end(Status.FINISHED)

    async def _insist(self, action: Callable[[], Any]) -> None:
        """Do `action`, which may be a coroutine function, again and again while the director lacks something for it.

        Raises EndedError if the experiment has ended meanwhile.
        """
        while True:
            try:
                with telling_lack(self.folder.path):
                    doing = action()
                    if isinstance(doing, Awaitable):
                        await doing
                self._lack("", None)
                return
            except LackError as error:
                self._lack("", str(error))
            await asyncio.sleep(LACK_SECONDS)
            if self.ended:
                raise EndedError

    def _lack(self, waiting: str, lack: str | None) -> None:
        """Say what the director lacks for `waiting`, an envoy's update or, when empty, the round itself."""
        before = self.waits
        if lack is None:
            self._lacks.pop(waiting, None)
        else:
            self._lacks[waiting] = lack
        if bool(before) != bool(self.waits):
            logger.warning("experiment '%s' %s", self.plan.name, f"waits: {lack}" if lack else "goes on")
            self._news.notify()
        if not waiting and lack is not None:
            self._call(self._tasks)

    @property
    def waits(self) -> str:
        """The name of what the director lacks and the experiment waits for; empty when it does not wait."""
        return "" if self.ended else next(iter(self._lacks.values()), "")

    async def wait_for_tasks(self, envoy: str) -> tuple[list[Task], int]:
        """Tasks of `envoy` and their round: waits until there are some, the experiment ends, or a long poll is over.

        Raises LackError while the experiment itself has to wait for something that the director lacks.
        """

        def tasks() -> list[Task]:
            return self.rounds.tasks_for(envoy) if self._accepts_updates else []

        deadline = time.monotonic() + LONG_POLL_SECONDS
        while not (self.ended or envoy in self.state.left or tasks()) and (left := deadline - time.monotonic()) > 0:
            if "" in self._lacks:
                raise LackError(f"experiment '{self.plan.name}' waits: {self._lacks['']}")
            await self._tasks[envoy].wait(left)
        return tasks(), self.rounds.round_number

    def global_model(self, sizes: Iterator[int]) -> Generator[bytes, None, None]:
        """Pieces, of these sizes, of this round's global model, as `protocol.tensors.receive` takes them."""
        header = self.model_header.with_metadata({"round": self.rounds.round_number})
        with self.folder.open_model(self.folder.model, header) as model:
            half = self.plan.precision == "float16"
            for piece in model.pieces_with_floats_as("<f2", sizes) if half else model.pieces(sizes):
                self.bytes_down += len(piece)
                yield piece

    def kept_model(self, which: str, sizes: Iterator[int]) -> Generator[bytes, None, None]:
        """Pieces of model 'initial', 'last', 'best' or another best one. Raises WireError if there is none yet."""
        path = self.folder.named_model(which)

        def pieces() -> Generator[bytes, None, None]:
            with self.folder.open_model(path) as model:
                yield from model.pieces(sizes)

        return pieces()

    async def receive_update(self, sender: UpdateEnvelope, header: Header, pieces: AsyncIterator[bytes]) -> bool:
        """Take in one envoy's update. False: it came too late, or once more, and was dropped, or it is left out.

        Raises UpdateRefusedError for one that must not count; then the round goes on without this envoy. One that
        breaks off (BrokenUploadError) may come again, as may one for which the director lacks something (LackError).
        """
        if self.is_dropped(sender):
            return False
        try:
            with telling_lack(self.folder.path), self.transfer("update", sender.envoy):
                counted = await self._take_in(sender, header, pieces)
            self._lack(sender.envoy, None)
            return counted
        except LackError as error:
            self._lack(sender.envoy, str(error))
            raise
        except CallEndedError as error:
            logger.info("%s is dropped: %s", sender, error)
            return False
        except UpdateRefusedError as error:
            self.refuse(sender, str(error))
            if isinstance(error, TooLargeError):
                return False
            raise
        except OSError as error:
            self.fail(f"the director cannot read or write: {error}")
            return False

    async def _take_in(self, sender: UpdateEnvelope, header: Header, pieces: AsyncIterator[bytes]) -> bool:
        update = read_update(header)
        self.check(update, header)
        path = self.folder.take_update_file()
        counted = False
        try:
            received = await write_update(path, header, pieces, str(sender))
            self.bytes_up += received
            if header.entries:
                with self.folder.open_model(self.folder.model) as model:
                    await unless_small(header.data_bytes, check_finite, path, str(update), header, model)
            counted = not self.is_dropped(sender)
            if counted:
                self._count(update, header, path)
                self._answers.notify()
        finally:
            if not counted:
                self.folder.free_update_file(path)
        return counted

    def is_dropped(self, sender: UpdateEnvelope) -> bool:
        """Tell whether an answer comes too late, or once more."""
        is_old = self.rounds.is_late_or_repeated(sender.envoy, sender.round)
        return self.ended or is_old or (sender.round == self.rounds.round_number and not self._accepts_updates)

    @contextmanager
    def transfer(self, kind: str, peer: str) -> Iterator[None]:
        """A transfer of a kind by one peer, and one more beside it, whose connection may have broken unnoticed.

        A third one ends the first, and the end of the round ends all of an envoy's: one who never ends them would hold
        files that nobody else needs. Raises CallEndedError.
        """
        others = self._transfers.setdefault((kind, peer), [])
        if len(others) == TRANSFERS_OF_A_KIND:
            others.pop(0).end(f"another {kind} of {peer} takes its place")
        with Endable() as transfer:
            others.append(transfer)
            try:
                yield
            finally:
                if transfer in others:
                    others.remove(transfer)

    def _end_transfers(self) -> None:
        for (_, peer), transfers in list(self._transfers.items()):
            # A user's copy of a model has nothing to do with the round.
            if peer in self.participants:
                for transfer in list(transfers):
                    transfer.end("the round has ended")

    def refuse(self, sender: UpdateEnvelope, reason: str) -> None:
        """The answer of an envoy that was asked does not count, and none other of it will in this round."""
        if sender.round == self.rounds.round_number and self.rounds.tasks_for(sender.envoy):
            self.rounds.refuse(sender.envoy, reason[:MAX_REASON_CHARACTERS])
            self.partial_updates.pop(sender.envoy, None)
            self._answers.notify()

    def register(self, envoy: str, sizes: Sizes) -> None:
        """Bound what a member's answers weigh by its shard. One that says later that it has more is named for it."""
        first = self.state.registered.setdefault(envoy, sizes)
        for task_type, unit in self.plan.units.items():
            before, now = first.get(task_type, {}).get(unit), sizes.get(task_type, {}).get(unit)
            if before is not None and now is not None and now > before:
                reason = f"registered {now} {unit} to {task_type} with, and {before} when it joined: it weighs those"
                self.rounds.note(envoy, reason)
                logger.warning("experiment '%s': envoy '%s' %s", self.plan.name, envoy, reason)

    def join(self, envoy: str, sizes: Sizes) -> None:
        """`envoy` is a member from the next round on."""
        self.participants.add(envoy)
        self.state.members = sorted({*self.state.members, envoy})
        self.register(envoy, sizes)

    def leave(self, envoy: str, reason: str) -> None:
        """The experiment failed on `envoy`. With a deadline the others go on, as long as they can be a quorum."""
        if self.ended:
            return
        self.state.left[envoy] = reason
        self.state.members = [member for member in self.state.members if member != envoy]
        first_line = reason.partition("\n")[0][:MAX_REASON_CHARACTERS]
        self.rounds.note(envoy, _departure(reason))
        if self.rounds.tasks_for(envoy):
            self.rounds.refuse(envoy, first_line)
        has_deadline = self.plan.participation.deadline_seconds is not None
        if not has_deadline or not self.rounds.can_reach_quorum(self.state.members):
            self.fail(f"envoy '{envoy}': {reason}")
        else:
            logger.warning("experiment '%s' goes on without envoy '%s': %s", self.plan.name, envoy, reason)
            self._save_soon()
            self._answers.notify()
            self._call([envoy])

    def fail(self, reason: str) -> None:
        self._end(Status.FAILED, reason)

    def stop(self) -> None:
        self._end(Status.STOPPED)

    async def history(self, first: int = 0, follow: bool = True) -> AsyncIterator[bytes]:
        """Lines of JSON: a record a round from record `first` on and, if `follow`, those to come until the end.

        Between them {"waits": what the director lacks} whenever that changes; empty when the experiment goes on.
        """
        seen, told = first, ""
        while True:
            if follow and self.waits != told:
                told = self.waits
                yield encode({"waits": told})
            elif seen < len(self.folder.history):
                yield await asyncio.to_thread(self.folder.history.line, seen)
                seen += 1
            elif self.ended or not follow:
                return
            else:
                await self._news.wait()

    def summary(self) -> dict[str, Any]:
        """Return the entry of this experiment in a list of all."""
        waiting = [envoy for envoy in self.rounds.asked if self.rounds.tasks_for(envoy)]
        last = self.folder.history.last or {}
        return {
            "name": self.plan.name,
            "owner": self.owner,
            "corpus": self.plan.corpus or "",
            "status": self.state.status.value,
            "round": self.rounds.round_number,
            "rounds": self.plan.rounds,
            "best": self.plan.best.model_dump(include={"metric", "direction"}),
            "envoys": self.state.members,
            "waiting_for": [] if self.ended else waiting,
            "waits": self.waits,
            "seconds_per_round": last.get("seconds"),
            "error": self.state.error,
        }

    def recount_updates(self) -> None:
        """After a restart: count the updates that had arrived for the round that was open."""
        for path in self.folder.updates():
            try:
                with TensorFile(path) as file:
                    header = file.header
                update = read_update(header)
                self.check(update, header)
                with self.folder.open_model(self.folder.model) as model:
                    check_finite(path, str(update), header, model)
                self._count(update, header, path)
            except (TensorFormatError, UpdateRefusedError) as error:
                logger.info("%s is no update of this round: %s", path.name, error)
                self.folder.free_update_file(path)

    async def _open_round(self) -> None:
        self._opened = time.monotonic()
        members = set(self.state.members)
        resumed = self.state.asked
        away: set[str] = set()
        gone: dict[str, str] = {}
        if resumed is not None:
            gone = {envoy: self.state.left[envoy] for envoy in resumed if envoy in self.state.left}
            resumed = [envoy for envoy in resumed if envoy in members]
        elif self.plan.participation.deadline_seconds is not None:
            # Whoever is away now would only be waited for. Without a deadline they are, so that every run is the same.
            online = {envoy for envoy in members if self._is_online(envoy)}
            if self.rounds.can_reach_quorum(online):
                members, away = online, members - online
        self.rounds.open(members, resumed)
        for envoy, reason in gone.items():
            self.rounds.note(envoy, _departure(reason))
        for envoy in sorted(away):
            self.rounds.note(envoy, "was away when the round began, and was not asked")
        self.state.asked = list(self.rounds.asked)
        await self._insist(self.folder.save_state)
        await self._insist(self.folder.delete_old_models)
        if resumed is not None:
            await self._insist(self.recount_updates)
        self.bytes_up = self.bytes_down = 0
        self._accepts_updates = True
        self._news.notify()
        self._call(self.rounds.asked)

    async def _wait_until_complete(self) -> None:
        deadline = self.plan.participation.deadline_seconds
        # A round that asks nobody waits for nothing; all others have their turn even so.
        await asyncio.sleep(0)
        while not self.ended and not self.rounds.is_complete(self._seconds_open()):
            left = None if deadline is None else deadline - self._seconds_open()
            # After the deadline only news can complete the round: it is short of its quorum.
            await self._answers.wait(left if left is None or left > 0 else None)
        self._accepts_updates = False
        self._end_transfers()

    async def _close_round(self) -> dict[str, Any]:
        """Go on to the next model. The round counts as soon as the state is saved, with the next round or the end."""
        record = self.rounds.record() | {
            "seconds": round(self._seconds_open(), 4),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }
        for name in self.rounds.better_scores():
            await self._insist(lambda: self.folder.link_model(name))  # noqa: B023
        await self._insist(lambda: self.folder.history.append(record))
        self.state.progress = self.rounds.progress = self.rounds.next_progress()
        self.state.asked = None
        self._free_updates()
        self._lacks.clear()
        await self._insist(lambda: self.folder.keep_round(record["round"]))
        logger.info("experiment '%s' round %d: %s", self.plan.name, record["round"], record["metrics"])
        return record

    def _fold(self, aggregations: int) -> None:
        folder, before = self.folder, aggregations - 1
        target, target_state = folder.model_after(aggregations), folder.optimizer_after(aggregations)
        contributions = []
        for envoy, clips in self.rounds.trained.items():
            path, header = self._updates[envoy]
            contributions.append(Contribution(path, clips, header))
        state = folder.optimizer_after(before)
        fold(
            folder.model,
            contributions,
            self.plan.aggregation,
            before,
            self.plan.untrained,
            state if state.exists() else None,
            target,
            target_state,
            {"aggregations": aggregations},
            outdated=folder.outdated_model(),
        )

    def _call(self, envoys: Iterable[str]) -> None:
        """Wake those of `envoys` that wait for tasks."""
        for envoy in envoys:
            if envoy in self._tasks:
                self._tasks[envoy].notify()

    def _seconds_open(self) -> float:
        return time.monotonic() - self._opened

    def _count(self, update: UpdateMessage, header: Header, path: Path) -> None:
        self.rounds.count(update)
        self._updates[update.envoy] = path, header

    def _free_updates(self) -> None:
        for path, _ in self._updates.values():
            self.folder.free_update_file(path)
        self._updates = {}
        self.partial_updates.clear()

    @cached_property
    def model_header(self) -> Header:
        with TensorFile(self.folder.model) as model:
            return model.header

    def check(self, update: UpdateMessage, header: Header) -> None:
        """Raises UpdateRefusedError unless results and tensors are those that were asked for."""
        self.rounds.check(update)
        names = [task.name for task in self.rounds.asked[update.envoy] if task.task_type == "train"]
        trained = any(update.results[name].size for name in names)
        if names and not trained and header.entries:
            raise UpdateRefusedError(f"{update}: trained on 0 clips, and yet there are {len(header.entries)} tensors")
        expected = self.model_header if trained else Header({}, {})
        if self.plan.precision == "float16":
            expected = expected.with_floats_as("<f2")
        check_layout(header, expected, str(update))

    def _end(self, status: Status, error: str = "") -> None:
        if self.ended:
            return
        self.state.status, self.state.error = status, error
        self._answers.notify()
        self._news.notify()
        self._call(self._tasks)
        self._end_transfers()
        self._save_soon()
        level = logging.ERROR if error else logging.INFO
        logger.log(level, "experiment '%s' is %s%s", self.plan.name, status.value, f": {error}" if error else "")

    def _save_soon(self) -> None:
        """Write down what has changed: now, or as soon as the director has what it lacks for that."""
        try:
            with telling_lack(self.folder.path):
                self._save()
        except LackError as error:
            logger.warning("the state of experiment '%s' is written down later: %s", self.plan.name, error)
            if self._saving is None:
                self._saving = asyncio.create_task(self._keep_saving())
        except OSError as error:
            logger.error("the state of experiment '%s' cannot be written down: %s", self.plan.name, error)

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(LACK_SECONDS)
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
            self._free_updates()
            self.folder.delete_free_update_files()
            self.folder.link_model("last")
        self.folder.save_state()
        if self.ended:
            # A director that is killed before it has written down that this is the end needs it to go on.
            self.folder.delete_archive()


def _departure(reason: str) -> str:
    return "left the experiment: " + reason.partition("\n")[0][:MAX_REASON_CHARACTERS]


def read_update(header: Header) -> UpdateMessage:
    """Return the message that an envoy sends with its tensors. Raises UpdateRefusedError."""
    try:
        return UpdateMessage.model_validate(header.metadata)
    except ValidationError as error:
        envoy, round_number = header.metadata.get("envoy"), header.metadata.get("round")
        refused = f"update of envoy '{envoy}' for round {round_number}"
        raise UpdateRefusedError(f"{refused}: {describe_faults(error)}") from None


async def unless_small(size: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that works on `size` bytes, in a thread unless the thread would cost more than the work."""
    return function(*arguments) if size <= SMALL_BYTES else await asyncio.to_thread(function, *arguments)
