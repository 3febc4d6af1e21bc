"""The director: its envoys, its experiments, and which experiment runs where."""

import asyncio
import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from openfl.protocols import director_pb2

from openfl_audio.config import Retention
from openfl_audio.director.authorization import Caller
from openfl_audio.director.envoy_entry import EnvoyEntry
from openfl_audio.director.experiment import Experiment
from openfl_audio.director.members import check_can_mask, choose_members
from openfl_audio.director.run_folder import STATE, UNFINISHED, RunFolder, Status, owner_of
from openfl_audio.director.totals import Totals
from openfl_audio.errors import EnvoyRefusedError, PrivacyError, RunFolderError, SteeringError, SubmissionError
from openfl_audio.privacy.accounting import check_can_account
from openfl_audio.protocol.certificates import DIRECTOR, USER
from openfl_audio.protocol.heads import HeadExchange
from openfl_audio.protocol.messages import EnvoySummary, ExperimentSummary, FederationStatus, Order
from openfl_audio.protocol.plan import EXPERIMENT_PLAN, ExperimentPlan
from openfl_audio.protocol.record import RECORD, Record
from openfl_audio.protocol.shard_sizes import Sizes

logger = logging.getLogger(__name__)

# After a notebook has called, envoys keep a spare worker for this long: its libraries take seconds to load.
PRESTART_SECONDS = 900.0
LOOK_SECONDS = 30.0
# Between two looks for experiments that are not to be kept.
RETENTION_SECONDS = 60.0
# Of an envoy's heads at most one in this time goes into the record, however many it sends.
HEADS_PAUSE_SECONDS = 1.0
# Envoys that are named where an experiment waits for many.
MOST_REASONS = 5
SUBMISSION = ".submission-"


@dataclass(frozen=True)
class UnusableExperiment:
    """An experiment on disk that this director cannot resume, and its owner, where that is known."""

    name: str
    owner: str
    reason: str

    def summary(self) -> ExperimentSummary:
        """Return the entry of this experiment in a list of all."""
        return ExperimentSummary(name=self.name, owner=self.owner, status=Status.FAILED.value, error=self.reason)


class Director:
    """State of the federation. All methods run in one event loop.

    Attributes:
        envoys: registered envoys by name.
        experiments: experiments by name.
        federations: experiments by the id that calls of OpenFL name.
        unusable: experiments that cannot be resumed, by name.
        record: what happened, for those who ask later.
        heads: the exchange of heads of records with envoys.
        totals: sums over the rounds since the director started.
    """

    def __init__(self, runs: Path, health_check_period: int) -> None:
        """Make a director whose files are in `runs`. Raises RecordError if the record there is none of this version."""
        self.runs = runs
        self.record = Record(runs / RECORD, f"{DIRECTOR} '{DIRECTOR}'")
        self.heads = HeadExchange(self.record, HEADS_PAUSE_SECONDS)
        self.totals = Totals()
        self.health_check_period = health_check_period
        self.envoys: dict[str, EnvoyEntry] = {}
        self.experiments: dict[str, Experiment] = {}
        self.federations: dict[str, Experiment] = {}
        self.unusable: dict[str, UnusableExperiment] = {}
        self._prestart_until = 0.0
        self._running: dict[str, asyncio.Task] = {}

    async def recover(self) -> None:
        """Resume the experiments on disk where a director before this one left them."""
        folders = []
        for path in sorted(self.runs.iterdir()):
            if path.name.startswith((UNFINISHED, SUBMISSION)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
            if path.is_dir() and any((path / name).exists() for name in (EXPERIMENT_PLAN, STATE)):
                try:
                    folders.append(RunFolder.load(path))
                except RunFolderError as error:
                    logger.error("experiment '%s' cannot be resumed: %s", path.name, error)
                    self.unusable[path.name] = UnusableExperiment(path.name, owner_of(path), str(error))
        for folder in sorted(folders, key=lambda folder: folder.state.submitted):
            experiment = self._add(folder)
            if experiment.state.status is Status.IN_PROGRESS:
                self._run(experiment)

    def is_online(self, name: str) -> bool:
        """Tell whether an envoy is there."""
        entry = self.envoys.get(name)
        return entry is not None and (entry.attending or time.time() - entry.last_seen < 2 * self.health_check_period)

    def changed_at(self, name: str) -> float:
        """Return when an envoy came or went away, in seconds of the clock; 0 for one that is not known."""
        return self.envoys[name].since if name in self.envoys else 0.0

    def register(
        self,
        shard_info: director_pb2.ShardInfo,
        corpus: str,
        instance: str,
        peer: str,
        sizes: Sizes | None = None,
    ) -> EnvoyEntry:
        """Register an envoy with the sizes of its shard, and return its entry.

        Raises EnvoyRefusedError while another one of its name is online.
        """
        name = shard_info.node_info.name
        known = self.envoys.get(name)
        if known and known.instance != instance and self.is_online(name):
            raise EnvoyRefusedError(
                f"an envoy named '{name}' is connected already, from {known.peer}: give this one another name"
            )
        entry = EnvoyEntry(shard_info, corpus, instance, peer, sizes or {})
        # It may be back in the middle of an experiment.
        entry.experiment = next((e for e in self.experiments.values() if self._has(e, name)), None)
        self.envoys[name] = entry
        if entry.experiment:
            entry.experiment.scheduler.register(name, entry.sizes)
        if known:
            entry.last_error = known.last_error
            known.changes.notify()
        logger.info("envoy '%s' registered, with %s: %s", name, corpus or "a corpus without a name", peer)
        self.assign()
        return entry

    async def attend(self, name: str, instance: str) -> AsyncIterator[Order]:
        """Yield what envoy `name` has to do, whenever that changes."""
        entry = self.envoys.get(name)
        if entry is None or entry.instance != instance:
            raise EnvoyRefusedError(f"envoy '{name}' is not registered")

        def order(experiment: Experiment | None) -> Order:
            return Order(
                experiment=experiment.plan.name if experiment else "", prestart=time.time() < self._prestart_until
            )

        entry.attending, given, given_experiment = True, None, None
        try:
            while self.envoys.get(name) is entry:
                experiment = entry.experiment if entry.experiment and not entry.experiment.ended else None
                if _is_resumed(experiment, given_experiment):
                    # Its worker may be about to end, and is ended before another one is started.
                    experiment = None
                if given == order(experiment):
                    # That the time of spare workers is over is no event: check it now and then.
                    await entry.changes.wait(LOOK_SECONDS)
                else:
                    given, given_experiment = order(experiment), experiment
                    yield given
        finally:
            entry.attending, entry.last_seen, entry.since = False, 0.0, time.time()
            if self.envoys.get(name) is entry:
                logger.warning("envoy '%s' is gone", name)
                # An experiment that waits for it no longer reserves other envoys.
                self.assign()

    def heard_from(self, name: str) -> None:
        """Note that an envoy has called. Raises EnvoyRefusedError for one that has to register (again)."""
        if name not in self.envoys:
            raise EnvoyRefusedError(f"envoy '{name}' is not registered")
        self.envoys[name].last_seen = time.time()

    def expect_experiments(self) -> None:
        """Let envoys start spare workers, as a notebook is there."""
        were_expected = time.time() < self._prestart_until
        self._prestart_until = time.time() + PRESTART_SECONDS
        for entry in () if were_expected else self.envoys.values():
            entry.changes.notify()

    async def submit(self, submission: Path, owner: str) -> None:
        """Take an experiment in; one whose submission is cancelled leaves nothing behind. Raises SubmissionError."""
        creating = asyncio.ensure_future(asyncio.to_thread(RunFolder.create, self.runs, submission, owner))
        try:
            folder = await asyncio.shield(creating)
        except asyncio.CancelledError:
            # Its thread continues all the same, and reads the submission, which lasts only as long as this call.
            with contextlib.suppress(SubmissionError):
                (await creating).discard()
            raise
        try:
            members = self._members(folder.plan)
            folder.accept(members, {name: self.envoys[name].sizes for name in members})
            # What is not recorded does not run.
            aggregation = folder.plan.aggregation.model_dump()
            self.record.append(
                "submitted",
                experiment=folder.plan.name,
                by=f"{USER} '{owner}'",
                rounds=folder.plan.rounds,
                envoys=members,
                registered=folder.state.registered,
                aggregation=aggregation,
                **folder.hashes,
            )
        except BaseException:
            folder.discard()
            raise
        self._add(folder)
        logger.info("experiment '%s' submitted by '%s'", folder.plan.name, owner)
        self.assign()

    async def resume(self, name: str) -> None:
        """Let an experiment that failed or was stopped continue after its last whole round. Raises SteeringError."""
        experiment = await self._ended(name, "there is nothing to resume")
        if experiment.state.status is Status.FINISHED:
            raise SteeringError(f"experiment '{name}' has finished: start another one from its model")
        try:
            folder = experiment.folder.resumed()
        except RunFolderError as error:
            raise SteeringError(f"experiment '{name}' cannot be resumed: {error}") from None
        self._add(folder)
        logger.info("experiment '%s' is resumed from round %d", name, folder.state.progress.round_number)
        self.assign()

    async def delete(self, name: str, who: str) -> None:
        """Remove an experiment that has ended, with models and history, as `who` wishes: its name is free again.

        Raises SteeringError.
        """
        if name in self.experiments:
            experiment = await self._ended(name, "stop it first")
            del self.experiments[name], self.federations[experiment.plan.federation_uuid]
        self.unusable.pop(name, None)
        # Under the name of what is not finished, its rest goes also if the director is killed meanwhile.
        leftover = self.runs / f"{UNFINISHED}{uuid.uuid4().hex}"
        (self.runs / name).rename(leftover)
        self.record.note("deleted", experiment=name, by=who)
        logger.info("experiment '%s' is deleted by %s", name, who)
        await asyncio.to_thread(shutil.rmtree, leftover)

    async def retain(self, retention: Retention) -> None:
        """Delete experiments that have ended and are not to be kept, now and then, for ever."""
        while True:
            ended = {
                name: experiment.state.ended_at or experiment.state.submitted
                for name, experiment in self.experiments.items()
                if experiment.ended
            }
            for name in retention.outdated(ended, time.time()):
                try:
                    await self.delete(name, "the director's setting `retention`")
                except (SteeringError, OSError) as error:
                    logger.warning("experiment '%s' is not deleted: %s", name, error)
            await asyncio.sleep(RETENTION_SECONDS)

    async def _ended(self, name: str, advice: str) -> Experiment:
        """Return an experiment that has ended, once nothing works on it any more.

        Raises SteeringError, with `advice`, if it has not ended.
        """
        while (task := self._running.get(name)) is not None and self.experiments[name].ended:
            await asyncio.wait([task])
        experiment = self.experiments.get(name)
        if experiment is None:
            raise SteeringError(f"experiment '{name}' is deleted")
        if not experiment.ended:
            raise SteeringError(f"experiment '{name}' is {experiment.state.status.value}: {advice}")
        if not experiment.is_saved:
            raise SteeringError(f"the end of experiment '{name}' is not written down yet: try it again later")
        return experiment

    async def wait_experiment(self, envoy: str) -> Experiment:
        """Return the experiment that `envoy` has to work on, as soon as there is one. OpenFL's envoys call it."""
        if envoy not in self.envoys:
            raise EnvoyRefusedError(f"envoy '{envoy}' is not registered")

        while True:
            entry = self.envoys[envoy]
            if entry.experiment and not entry.experiment.ended:
                return entry.experiment
            await entry.changes.wait()

    def assign(self) -> None:
        """Start pending experiments whose envoys are all online and free, in the order of submission.

        One that waits for more members takes those of its corpus as they come, and begins when they are enough.
        An experiment whose envoys are all online, some at work, reserves the others: a later one must not overtake it
        on them. An experiment that waits for an envoy that is offline reserves none, whether the envoy is one of its
        own or one that an experiment of its envoys waits for. Free envoys then join the running experiments that are
        open to them.
        """
        busy = set()
        for name, entry in self.envoys.items():
            if entry.experiment and (entry.experiment.ended or name in entry.experiment.state.departed):
                entry.work_on(None)
            if entry.experiment:
                busy.add(name)
        for experiment in list(self.experiments.values()):
            if experiment.state.status is Status.PENDING:
                self._gather(experiment)
                members = experiment.state.members
                if experiment.plan.participation.lacking(members):
                    continue
                if not all(self.is_online(name) and not self._is_held_up(name) for name in members):
                    continue
                if not busy.intersection(members):
                    for name in members:
                        self.envoys[name].work_on(experiment)
                    self._run(experiment)
                busy.update(members)
        for name, entry in self.envoys.items():
            if name not in busy and self.is_online(name):
                self._let_join(name, entry)
        for experiment in self.experiments.values():
            if experiment.state.status is Status.PENDING:
                experiment.note_queue(self._queue(experiment))

    def _gather(self, experiment: Experiment) -> None:
        """Let envoys of its corpus join a pending experiment that waits for more members."""
        plan, state = experiment.plan, experiment.state
        if plan.envoys is not None or not plan.participation.lacking(state.members):
            return
        corpus = self._corpus_of(experiment)
        for name, entry in sorted(self.envoys.items()):
            if self.is_online(name) and entry.corpus == corpus and name not in state.members:
                experiment.scheduler.join(name, entry.sizes)

    def _queue(self, experiment: Experiment) -> str:
        """Return for which envoys a pending experiment waits, and why; "" if it begins now."""
        lacking = experiment.plan.participation.lacking(experiment.state.members)
        reasons = [f"{lacking} more envoys are to come"] if lacking else []
        for name in experiment.state.members:
            work = self.envoys[name].experiment if name in self.envoys else None
            if not self.is_online(name):
                reasons.append(f"{name} is offline")
            elif work is None:
                continue
            elif work is not experiment:
                reasons.append(f"{name} works on '{work.plan.name}'")
        if not reasons and not all(self.envoys[name].experiment is experiment for name in experiment.state.members):
            return "its envoys are kept for an earlier experiment"
        more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
        return ", ".join(reasons[:MOST_REASONS] + more)

    def status(self, caller: Caller) -> FederationStatus:
        """Return envoys and experiments; to users not why others' failed, which may quote their owners' code."""
        experiments = [experiment.view.summary() for experiment in self.experiments.values()]
        experiments += [experiment.summary() for experiment in self.unusable.values()]
        envoys = [self._summary(name, entry, caller) for name, entry in sorted(self.envoys.items())]
        shown = [each if caller.sees(each.owner) else each.model_copy(update={"error": ""}) for each in experiments]
        return FederationStatus(envoys=envoys, experiments=shown)

    def _summary(self, name: str, entry: EnvoyEntry, caller: Caller) -> EnvoySummary:
        """Return the entry of an envoy in a list of all; what it does for others' experiments is not for users."""
        work = entry.experiment
        is_seen = work is not None and caller.sees(work.owner)
        if work is not None:
            work.live.looked()
        return EnvoySummary(
            name=name,
            corpus=entry.corpus,
            online=self.is_online(name),
            experiment=work.plan.name if work else "",
            since=entry.since,
            progress=work.view.progress_of(name) if work is not None and is_seen else None,
            last_error=entry.last_error if caller.role != USER else "",
            sizes=entry.sizes,
            versions=entry.versions,
            certificate_expires=entry.certificate_expires,
        )

    def _add(self, folder: RunFolder) -> Experiment:
        experiment = Experiment(folder, self.record, self.is_online, self.changed_at, self.totals)
        self.experiments[folder.plan.name] = self.federations[folder.plan.federation_uuid] = experiment
        return experiment

    def _run(self, experiment: Experiment) -> None:
        # The event loop itself keeps no more than a weak reference to a task.
        name = experiment.plan.name
        self._running[name] = asyncio.create_task(experiment.scheduler.run(self.assign))
        self._running[name].add_done_callback(lambda _: self._running.pop(name))

    def _members(self, plan: ExperimentPlan) -> list[str]:
        """Return the envoys of a new experiment. Raises SubmissionError."""
        # An experiment of the same name is refused for its name.
        other = self.federations.get(plan.federation_uuid)
        if other is not None and other.plan.name != plan.name:
            raise SubmissionError(f"federation_uuid '{plan.federation_uuid[:80]}' is that of another experiment")
        online = {name: entry.corpus for name, entry in sorted(self.envoys.items()) if self.is_online(name)}
        members = choose_members(plan, online)
        if plan.privacy is not None:
            try:
                check_can_account()
            except PrivacyError as error:
                raise SubmissionError(f"at the director {error}") from None
        if plan.secure_aggregation is not None:
            check_can_mask({name: self.envoys[name] for name in members})
        return members

    def _has(self, experiment: Experiment, envoy: str) -> bool:
        """Tell whether an envoy is a member of an experiment that runs, or is about to."""
        return experiment.plan.name in self._running and not experiment.ended and envoy in experiment.state.members

    def _is_held_up(self, envoy: str) -> bool:
        """Tell whether an envoy is at work on an experiment that waits for an envoy that is gone."""
        experiment = self.envoys[envoy].experiment
        return experiment is not None and experiment.scheduler.is_held_up

    def _let_join(self, name: str, entry: EnvoyEntry) -> None:
        for experiment in self.experiments.values():
            state, plan = experiment.state, experiment.plan
            takes_all = plan.envoys is None and state.status is Status.IN_PROGRESS and name not in state.departed
            if takes_all and entry.corpus == self._corpus_of(experiment):
                logger.info("envoy '%s' joins experiment '%s'", name, plan.name)
                experiment.scheduler.join(name, entry.sizes)
                entry.work_on(experiment)
                return

    def _corpus_of(self, experiment: Experiment) -> str | None:
        if experiment.plan.corpus is not None:
            return experiment.plan.corpus
        return next((self.envoys[name].corpus for name in experiment.state.members if name in self.envoys), None)


def _is_resumed(experiment: Experiment | None, before: Experiment | None) -> bool:
    if experiment is None or before is None or experiment is before:
        return False
    return experiment.plan.name == before.plan.name
