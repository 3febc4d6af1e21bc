"""The scheduler of an experiment: rounds, their participants, how long they stay open, and what follows them."""

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from openfl_audio.director.aggregate import aggregate_files
from openfl_audio.director.intake import MAX_REASON_CHARACTERS, Intake
from openfl_audio.director.run import Phase, Run
from openfl_audio.director.run_folder import Status
from openfl_audio.director.secure_rounds import SecureRounds
from openfl_audio.director.tensorboard import TensorBoard
from openfl_audio.errors import EndedError, LackError, NotFiniteError, RoundFailedError, SteeringError
from openfl_audio.privacy.accounting import privacy_of
from openfl_audio.privacy.site_level import SiteRound, begin_site_round
from openfl_audio.protocol.messages import GlobalModel
from openfl_audio.protocol.plan import Task
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.shard_sizes import Sizes

logger = logging.getLogger(__name__)

# A long poll is answered after this many seconds even if there is nothing to say, so that dead peers are noticed.
LONG_POLL_SECONDS = 20.0
# Of what is kept of a round the part that goes into the director's record, from which a release report is made.
MEASURED = ("round", "best", "metrics", "means_of_sites", "envoys", "privacy")


class Scheduler:
    """Runs the rounds of an experiment, and knows its members.

    Attributes:
        n_bytes: bytes that envoys have received in this round: models, and the answers of a secure round's stages.
        secure: the experiment's secure rounds, None where each update is seen.
    """

    def __init__(self, run: Run, intake: Intake, is_online: Callable[[str], bool]) -> None:
        self._run, self._folder, self._plan = run, run.folder, run.plan
        self._state, self._rounds = run.state, run.rounds
        self._intake, self._is_online = intake, is_online
        self._opened = time.monotonic()
        self._aggregated: dict[str, float] = {}
        self.n_bytes = 0
        self.secure: SecureRounds | None = None

    @property
    def is_held_up(self) -> bool:
        """Tell whether the round cannot end before an envoy that is gone has come back."""
        participants = self._rounds.participants
        away = [envoy for envoy in participants if self._rounds.tasks_for(envoy) and not self._is_online(envoy)]
        if self._plan.participation.deadline_seconds is None:
            return bool(away)
        return bool(away) and len(participants) - len(away) < self._rounds.quorum

    @property
    def seconds_open(self) -> float:
        """Return for how many seconds the current round has been open."""
        return time.monotonic() - self._opened

    async def run(self, others_may_run: Callable[[], Any]) -> None:
        """Run all rounds that are still to come.

        `others_may_run` is called when the envoys are free, or held up by one that is gone, however that came about.
        """
        if self._run.ended:
            return  # stopped before it began
        try:
            tensorboard = TensorBoard(self._folder.path / "tensorboard", self._rounds.round_number)
            await self._run_rounds(tensorboard, others_may_run)
        except EndedError:
            pass  # it was stopped while it waited
        except (RoundFailedError, NotFiniteError) as error:
            self._run.fail(str(error))
        except OSError as error:
            self._run.fail(f"the director cannot read or write: {error}")
        except Exception as error:
            logger.exception("experiment '%s'", self._plan.name)
            self._run.fail(f"fault in the director: {type(error).__name__}: {error}")
        self._intake.forget()
        others_may_run()

    async def wait_for_tasks(self, envoy: str) -> tuple[list[Task], int]:
        """Return the tasks of `envoy` and their round, as soon as there are some.

        There are none when the experiment has ended, the envoy has departed, or a long poll is over. Raises LackError
        while the round has to wait for something that the director lacks.
        """

        def tasks() -> list[Task]:
            return self._rounds.tasks_for(envoy) if self._run.phase is Phase.OPEN else []

        def is_over() -> bool:
            return self._run.ended or envoy in self._state.departed or bool(tasks())

        deadline = time.monotonic() + LONG_POLL_SECONDS
        while not is_over() and (seconds := deadline - time.monotonic()) > 0:
            if self._run.lacks.of_round:
                raise LackError(f"experiment '{self._plan.name}' waits: {self._run.lacks.of_round}")
            await self._run.wait_for_news_of_tasks(envoy, seconds)
        return tasks(), self._rounds.round_number

    def global_model(self, envoy: str, sizes: Iterator[int]) -> Generator[bytes, None, None]:
        """Yield this round's global model for `envoy`, in chunks of these sizes, as `tensors.receive` takes them."""
        metadata = GlobalModel(round=self._rounds.round_number, rate_factor=self._rounds.rate_factor).model_dump()
        header = self._folder.model_header.with_metadata(metadata)
        half = self._plan.precision == "float16"
        n_bytes = (header.with_floats_as("<f2") if half else header).data_bytes
        with (
            self._run.live.transfer(envoy, "download", n_bytes) as transfer,
            self._folder.open_model(self._folder.model, header) as model,
        ):
            for number, chunk in enumerate(model.chunks_with_floats_as("<f2", sizes) if half else model.chunks(sizes)):
                self.n_bytes += len(chunk)
                yield chunk
                transfer.moved += len(chunk) if number else 0  # the first one is the header

    def register(self, envoy: str, sizes: Sizes) -> None:
        """Bound what a member's results weigh by its shard. A member that later says it has more is named for it."""
        first = self._state.registered.setdefault(envoy, sizes)
        for task_type, unit in self._plan.units.items():
            before, now = first.get(task_type, {}).get(unit), sizes.get(task_type, {}).get(unit)
            if before is not None and now is not None and now > before:
                reason = f"registered {now} {unit} to {task_type} with, and {before} when it joined: it weighs those"
                self._rounds.note(envoy, reason)
                logger.warning("experiment '%s': envoy '%s' %s", self._plan.name, envoy, reason)

    def join(self, envoy: str, sizes: Sizes) -> None:
        """Make `envoy` a member from the next round on."""
        self._run.note("joined", envoy=envoy)
        self._run.envoys.add(envoy)
        self._state.members = sorted({*self._state.members, envoy})
        self.register(envoy, sizes)

    def depart(self, envoy: str, reason: str) -> None:
        """Go on without `envoy`, on which the experiment failed, or fail.

        With a deadline the other members go on, as long as they can be a quorum.
        """
        if self._run.ended:
            return
        self._remove(envoy, reason)
        has_deadline = self._plan.participation.deadline_seconds is not None
        if not has_deadline or not self._rounds.can_reach_quorum(self._state.members):
            self._run.fail(f"envoy '{envoy}': {reason}")
        else:
            self._continue_without(envoy, reason)

    def drop(self, envoy: str, reason: str) -> None:
        """Continue without `envoy`, as somebody wishes; an update of it that has come in this round counts.

        An experiment that failed or was stopped will be resumed without it. Raises SteeringError if `envoy` is no
        member, or the others could not continue.
        """
        name = f"experiment '{self._plan.name}'"
        members = self._state.members if not self._run.ended else [*self._state.members, *self._state.departed]
        others = [member for member in members if member != envoy and member not in self._state.dropped]
        if self._state.status is Status.FINISHED:
            raise SteeringError(f"{name} has finished")
        if envoy not in members or envoy in self._state.dropped:
            raise SteeringError(f"envoy '{envoy[:80]}' is no member of {name}; its members are {members}")
        if not self._rounds.can_reach_quorum(others):
            raise SteeringError(f"{name} could not reach its quorum without envoy '{envoy}': stop it instead")
        if not self._run.ended and not self._rounds.can_close_without(envoy):
            raise SteeringError(
                f"round {self._rounds.round_number} of {name} could not reach its quorum without envoy '{envoy}': "
                "stop the experiment, drop the envoy, and resume the experiment"
            )
        try:
            self._rounds.check_members(others)
        except ValueError as error:
            raise SteeringError(f"without envoy '{envoy}': {error}") from None
        self._state.dropped.append(envoy)
        self._remove(envoy, reason)
        self._continue_without(envoy, reason)

    def _remove(self, envoy: str, reason: str) -> None:
        """Make `envoy` no member any more, and its update of this round, if it has not come, one that is refused."""
        self._run.note("departed", envoy=envoy, reason=reason.partition("\n")[0][:MAX_REASON_CHARACTERS])
        self._state.departed[envoy] = reason
        self._state.members = [member for member in self._state.members if member != envoy]
        if self._rounds.tasks_for(envoy):
            self._rounds.refuse(envoy, _departure(reason), released=False)
        else:
            self._rounds.note(envoy, _departure(reason))

    def _continue_without(self, envoy: str, reason: str) -> None:
        logger.warning("experiment '%s' continues without envoy '%s': %s", self._plan.name, envoy, reason)
        self._run.save_soon()
        self._run.answered.notify()
        self._run.wake([envoy])

    async def _run_rounds(self, tensorboard: TensorBoard, others_may_run: Callable[[], Any]) -> None:
        name, members = self._plan.name, ", ".join(self._state.members)
        logger.info("experiment '%s' runs from round %d on %s", name, self._rounds.round_number, members)
        self._state.status = Status.IN_PROGRESS
        while not self._run.ended and not self._rounds.finished:
            await self._open_round()
            if self.is_held_up:
                others_may_run()
            await self._wait_until_complete()
            if not self._run.ended:
                self._rounds.check_answers()
                self._aggregated = {}
                if self._rounds.aggregates:
                    aggregations = self._rounds.progress.aggregations + 1
                    await self._retry(lambda: asyncio.to_thread(self._aggregate, aggregations))  # noqa: B023
                    rule = self._plan.aggregation.rule.rule
                    self._run.note("aggregated", round=self._rounds.round_number, rule=rule, clips=self._rounds.trained)
            # It may have been stopped meanwhile. Then the round does not count.
            if not self._run.ended:
                record = await self._close_round()
                await self._retry(lambda: tensorboard.add(record))  # noqa: B023
        if not self._run.ended:
            await self._retry(self._folder.save_state)
            self._run.end(Status.FINISHED)

    async def _retry(self, action: Callable[[], Any]) -> None:
        await self._run.lacks.retry(action)

    async def _open_round(self) -> None:
        self._opened = time.monotonic()
        members = set(self._state.members)
        resumed = self._state.participants
        away: set[str] = set()
        gone: dict[str, str] = {}
        if resumed is not None:
            gone = {envoy: self._state.departed[envoy] for envoy in resumed if envoy in self._state.departed}
            resumed = [envoy for envoy in resumed if envoy in members]
        elif self._plan.participation.deadline_seconds is not None:
            # Members that are offline would only be waited for. Without a deadline they are: every run is the same.
            online = {envoy for envoy in members if self._is_online(envoy)}
            if self._rounds.can_reach_quorum(online):
                members, away = online, members - online
        self._rounds.open(members, resumed)
        for envoy, reason in gone.items():
            self._rounds.note(envoy, _departure(reason))
        for envoy in sorted(away):
            waits = envoy in self._run.awaiting_approval
            why = "had no approval of its site" if waits else "was away"
            self._rounds.note(envoy, f"{why} when the round began, and was not asked")
        self._state.participants = list(self._rounds.participants)
        await self._retry(self._folder.save_state)
        await self._retry(self._folder.delete_old_models)
        if resumed is not None:
            await self._retry(self._intake.recount)
        self._intake.n_bytes = self.n_bytes = 0
        self._run.clock.restart()
        self._run.open_round()

    async def _wait_until_complete(self) -> None:
        deadline = self._plan.participation.deadline_seconds
        # A round without participants waits for nothing. Even so the event loop must get to other tasks.
        await asyncio.sleep(0)
        if self.secure:
            await self.secure.run_round(lambda: self.seconds_open)
            self._run.close_round()
            return
        while not self._run.ended and not self._rounds.is_complete(self.seconds_open):
            seconds = None if deadline is None else deadline - self.seconds_open
            # After the deadline only news can complete the round: it is short of its quorum.
            await self._run.answered.wait(seconds if seconds is None or seconds > 0 else None)
        self._run.close_round()

    async def _close_round(self) -> dict[str, Any]:
        """Go on to the next model. The round counts as soon as the state is saved, with the next round or the end."""
        record = self._rounds.record() | {
            "seconds": round(self.seconds_open, 4),
            "bytes_up": self._intake.n_bytes,
            "bytes_down": self.n_bytes,
            "timings": self._run.clock.seconds(),
            "aggregation": self._aggregated,
            "privacy": await asyncio.to_thread(privacy_of, self._plan, self._rounds.releases),
        }
        if record["missing"]:
            self._run.note("missing", round=record["round"], envoys=record["missing"])
        self._run.note("measured", **{key: record[key] for key in MEASURED if record.get(key) is not None})
        # The round counts when the state is saved: by then its entries are on the disk as well.
        recording = asyncio.create_task(self._retry(lambda: asyncio.to_thread(self._run.record.sync)))
        for name in self._rounds.better_scores():
            await self._retry(lambda: self._folder.link_model(name))  # noqa: B023
        await self._retry(lambda: self._folder.history.append(record, durable=True))
        await recording
        self._run.totals.add(record)
        self._state.progress = self._rounds.progress = self._rounds.next_progress()
        self._state.participants = None
        self._intake.discard()
        if self.secure:
            self.secure.close()
        self._run.lacks.forget()
        await self._retry(lambda: self._folder.keep_round(record["round"]))
        logger.info("experiment '%s' round %d: %s", self._plan.name, record["round"], record["metrics"])
        return record

    def _aggregate(self, aggregations: int) -> None:
        """Make the model after this many aggregations."""
        folder, before = self._folder, aggregations - 1
        state = folder.optimizer_after(before)
        site = self._begin_site_round()
        self._aggregated = aggregate_files(
            folder.model,
            self._intake.contributions(),
            self._plan.aggregation,
            before,
            self._plan.untrained,
            state if state.exists() else None,
            folder.model_after(aggregations),
            folder.optimizer_after(aggregations),
            {"aggregations": aggregations},
            outdated=folder.outdated_model(),
            secret=self.secure.secret if self.secure else None,
            site=site,
        )
        if site:
            self._rounds.next_clip = site.next_clip()

    def _begin_site_round(self) -> SiteRound | None:
        """Return the clipping and the noise of this round, None unless the director has to do with them."""
        level = self._plan.privacy
        if not isinstance(level, SiteLevel) or self.secure:
            return None
        entries, untrained = self._folder.update_header.entries, set(self._plan.untrained)
        sizes = {name: each.count for name, each in entries.items() if each.is_float and name not in untrained}
        return begin_site_round(self._plan, level, self._rounds.progress.clip, sizes, self._rounds.round_number)


def _departure(reason: str) -> str:
    told = reason.partition("\n")[0][:MAX_REASON_CHARACTERS]
    return f"left the experiment: {told}" if told else "left the experiment"
