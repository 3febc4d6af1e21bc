"""The director: which envoys there are, which experiments, and which experiment runs where."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from openfl.protocols import director_pb2

from director.experiment import Experiment, Status
from director.run_folder import RunFolder, SubmissionError, first_model, read_submission

logger = logging.getLogger(__name__)


class EnvoyRefusedError(ValueError):
    """An envoy that may not register, or one nobody knows."""


@dataclass
class EnvoyEntry:
    """One registered envoy. `instance` tells a restarted envoy from a second one of the same name."""

    shard_info: director_pb2.ShardInfo
    instance: str
    peer: str
    last_seen: float = field(default_factory=time.time)
    connected: bool = True
    is_experiment_running: bool = False
    experiment: Experiment | None = None


class Director:
    """State of the federation. All methods run in one event loop."""

    def __init__(self, runs: Path, health_check_period: int) -> None:
        self.runs = runs
        self.health_check_period = health_check_period
        self.envoys: dict[str, EnvoyEntry] = {}
        self.experiments: dict[str, Experiment] = {}
        self._changed = asyncio.Condition()

    def is_online(self, entry: EnvoyEntry) -> bool:
        return entry.connected and time.time() - entry.last_seen < 2 * self.health_check_period

    async def register(self, shard_info: director_pb2.ShardInfo, instance: str, peer: str) -> None:
        """Raises EnvoyRefusedError while another envoy of this name is online."""
        name = shard_info.node_info.name
        known = self.envoys.get(name)
        if known and known.instance != instance and self.is_online(known):
            raise EnvoyRefusedError(
                f"an envoy named '{name}' is connected already, from {known.peer}: give this one another name"
            )
        entry = EnvoyEntry(shard_info, instance, peer)
        if known:
            entry.experiment = known.experiment
        self.envoys[name] = entry
        logger.info("envoy '%s' registered: %s", name, shard_info.shard_description)
        await self.start_ready_experiments()

    def heard_from(self, name: str, is_experiment_running: bool) -> None:
        """Raises EnvoyRefusedError for an envoy that has to register (again)."""
        if name not in self.envoys:
            raise EnvoyRefusedError(f"envoy '{name}' is not registered")
        entry = self.envoys[name]
        entry.last_seen, entry.connected, entry.is_experiment_running = time.time(), True, is_experiment_running

    def lost_connection(self, name: str, instance: str) -> None:
        entry = self.envoys.get(name)
        if entry and entry.instance == instance:
            entry.connected = False
            logger.warning("envoy '%s' is gone", name)

    async def submit(self, submission: Path, owner: str) -> None:
        """Take an experiment in. Raises SubmissionError."""
        plan, archive, model_bytes = read_submission(submission)
        model = first_model(model_bytes)
        absent = [name for name in plan.envoys if name not in self.envoys or not self.is_online(self.envoys[name])]
        if absent:
            online = sorted(name for name, entry in self.envoys.items() if self.is_online(entry))
            raise SubmissionError(f"envoys {absent} are not online (online: {online})")
        folder = RunFolder.create(self.runs / plan.name, plan, archive, model)
        self.experiments[plan.name] = Experiment(plan, owner, folder, model)
        logger.info("experiment '%s' submitted by '%s'", plan.name, owner)
        await self.start_ready_experiments()

    async def wait_experiment(self, envoy: str) -> Experiment:
        """The experiment `envoy` has to work on, as soon as there is one.

        An envoy that comes back in the middle of an experiment gets the same one again.
        """
        if envoy not in self.envoys:
            raise EnvoyRefusedError(f"envoy '{envoy}' is not registered")

        def assigned() -> Experiment | None:
            experiment = self.envoys[envoy].experiment
            return experiment if experiment and not experiment.ended else None

        async with self._changed:
            while not (experiment := assigned()):
                await self._changed.wait()
            return experiment

    async def start_ready_experiments(self) -> None:
        """Start pending experiments whose envoys are all free, in the order of submission.

        An experiment that has to wait keeps its envoys: a later one must not overtake it on them.
        """
        async with self._changed:
            busy = {name for name, entry in self.envoys.items() if entry.experiment and not entry.experiment.ended}
            for experiment in self.experiments.values():
                if experiment.status is Status.PENDING:
                    if not busy.intersection(experiment.plan.envoys):
                        experiment.start()
                        for name in experiment.plan.envoys:
                            self.envoys[name].experiment = experiment
                    busy.update(experiment.plan.envoys)
            self._changed.notify_all()
