"""Experiments without a network: the director's rounds, with virtual clients in this process or on Ray.

    simulation = Simulation(clients, open_shard, "runs/simulated")
    simulation.start("whisper", model_provider=..., task_keeper=..., data_loader=..., rounds_to_train=100)
    history = simulation.watch()

With one client that has everything this is centralized training, with one of many clients that client alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from openfl_audio.errors import SimulationError, UpdateRefusedError
from openfl_audio.node.local_state import ClientStates
from openfl_audio.notebook.experiment import Definition, define
from openfl_audio.notebook.live_view import show_progress
from openfl_audio.privacy.accounting import privacy_of
from openfl_audio.privacy.aggregate import SiteAggregator, SumAggregator
from openfl_audio.privacy.site_level import SiteRound, begin_site_round
from openfl_audio.privacy.transcript import Stage
from openfl_audio.protocol.aggregate import Aggregator
from openfl_audio.protocol.low_rank import is_given
from openfl_audio.protocol.messages import UpdateMessage
from openfl_audio.protocol.plan import NAME, name_of_best
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.rounds import Progress, Rounds
from openfl_audio.protocol.tensors import Tensors, describe
from openfl_audio.simulation.checkpoint import Checkpoint
from openfl_audio.simulation.secure_round import SecureRound
from openfl_audio.simulation.virtual_clients import Envoys, OpenShard, VirtualEnvoys, ray_envoys
from openfl_audio.training.history import to_frame


class Simulation:
    """An experiment on virtual clients. Arguments and methods have the names that they have in `FLExperiment`.

    The same seed gives the same weights as a federated run, whatever the number of workers, and after a kill: `start`
    with the same arguments resumes from the last checkpoint in `folder`.
    """

    def __init__(
        self,
        clients: Sequence[str],
        open_shard: OpenShard,
        folder: str | Path,
        *,
        workers: int = 1,
        ray_address: str | None = None,
        gpus_per_client: float = 0.0,
    ) -> None:
        """Prepare a simulation of `clients`, which is kept in `folder`.

        `open_shard(client)` returns a client's shard descriptor; it is called in the process and in the round in which
        the client first takes part. With more than one of `workers`, clients run side by side in that many Ray actors:
        on this machine, or on the cluster at `ray_address`. Each takes `gpus_per_client` of a GPU.
        """
        faulty = [client for client, times in Counter(clients).items() if times > 1 or not NAME.fullmatch(client)]
        if faulty or not clients:
            raise ValueError(f"clients need names, and each its own: {faulty[:3] or 'there are none'}")
        if workers < 1:
            raise ValueError(f"workers is {workers}: at least one process runs the clients")
        self.clients = list(clients)
        self.folder = Path(folder)
        self._open_shard = open_shard
        self._workers, self._ray = workers, (workers, ray_address, gpus_per_client)
        self._definition: Definition | None = None
        self._lost: dict[int, dict[str, Stage]] = {}

    def start(self, experiment_name: str, **arguments: Any) -> None:
        """Prepare the experiment, or resume it where an earlier run in this folder ended; `watch` runs it.

        Raises FolderInUseError if the folder is that of another experiment.
        """
        if arguments.get("envoys") is None:
            # Spelled out, they are part of the claim on the folder.
            arguments["envoys"] = self.clients
        definition = define(experiment_name, **arguments | {"envoys": sorted(arguments["envoys"])})
        members = definition.plan.envoys or []
        unknown = {*members, *definition.plan.participation.evaluators}.difference(self.clients)
        if unknown:
            raise ValueError(f"{sorted(unknown)[:3]} are not among the {len(self.clients)} clients")
        Rounds(definition.plan, Progress()).check_members(members)
        self._definition, self._members = definition, members
        self._checkpoint = Checkpoint(self.folder, definition)

    def lose(self, client: str, round_number: int, stage: Stage) -> None:
        """Let a secure round lose a client, which then sends nothing from `stage` on.

        Its update counts if it is lost after `Stage.UPDATE`, as in a federation. A simulation that resumes has to be
        told again. Raises ValueError if the experiment has no such client, or no secure aggregation.
        """
        plan = self.definition.plan
        if plan.secure_aggregation is None:
            raise ValueError(f"experiment '{plan.name}' has no secure aggregation, and so no stage {stage.name}")
        if client not in self._members:
            raise ValueError(f"'{client}' is none of the {len(self._members)} clients of experiment '{plan.name}'")
        self._lost.setdefault(round_number, {})[client] = stage

    @property
    def definition(self) -> Definition:
        """Return the experiment that was started. Raises SimulationError if there is none."""
        if self._definition is None:
            raise SimulationError("there is no experiment yet: call start()")
        return self._definition

    @property
    def history(self) -> pd.DataFrame:
        """Return the rounds so far, a row for each. Its columns: see `watch`."""
        return to_frame(self.records)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return the records of the rounds so far, as `history.jsonl` has them."""
        return self._checkpoint.history if self.definition else []

    def watch(self) -> pd.DataFrame:
        """Run the rounds that are left and show all, as `FLExperiment.watch` does. Returns the history."""
        plan, past = self.definition.plan, list(self.records)
        records = (record for records in (past, self.run()) for record in records)
        return show_progress(records, plan.name, plan.best.metric, plan.best.direction, len(past))

    def run(self, on_client: Callable[[str], None] = lambda client: None) -> Iterator[dict[str, Any]]:
        """Run the rounds that are left, and yield the record of each. `on_client` is called when a client has answered.

        Raises SimulationError, naming the client, if a task fails; RoundFailedError if no client could train, or if no
        client reports the metric that chooses the best model.
        """
        definition, checkpoint = self.definition, self._checkpoint
        plan = definition.plan
        rounds = Rounds(plan, checkpoint.progress)
        if rounds.finished:
            return
        before = checkpoint.moments, rounds.progress.aggregations
        kind = SiteAggregator if isinstance(plan.privacy, SiteLevel) else Aggregator
        aggregator = (
            SumAggregator(checkpoint.model, plan, *before)
            if plan.secure_aggregation
            else kind(checkpoint.model, plan.aggregation, plan.untrained, *before)
        )
        with self._start_envoys() as envoys:
            while not rounds.finished:
                began = time.monotonic()
                rounds.open(self._members)
                site = self._begin_site_round(rounds, aggregator)
                n_bytes = self._run_round(rounds, aggregator, envoys, on_client)
                record = rounds.record() | n_bytes | {"aggregation": {}}
                record["privacy"] = privacy_of(plan, rounds.releases)
                try:
                    for which in rounds.better_scores():
                        checkpoint.keep_best(which, aggregator.model)
                    if rounds.aggregates:
                        record["aggregation"] = aggregator.finish_round()
                        rounds.next_clip = site.next_clip() if site else None
                    rounds.progress = rounds.next_progress()
                    record["seconds"] = round(time.monotonic() - began, 4)
                    at_once = rounds.finished or self._keeps_state
                    checkpoint.close_round(record, aggregator, rounds.progress, at_once)
                except BaseException:
                    # The state in memory is half of the next round; the checkpoint on disk is whole.
                    self._checkpoint = Checkpoint(self.folder, definition)
                    raise
                yield record

    @staticmethod
    def _begin_site_round(rounds: Rounds, aggregator: Aggregator) -> SiteRound | None:
        """Return the clipping and the noise of a round, None without privacy of sites."""
        level = rounds.plan.privacy
        if not (isinstance(aggregator, SiteAggregator) and isinstance(level, SiteLevel)):
            return None
        sizes = {name: aggregator.model[name].size for name in aggregator.trained}
        site = begin_site_round(rounds.plan, level, rounds.progress.clip, sizes, rounds.round_number)
        aggregator.begin(site)
        return site

    def _run_round(
        self, rounds: Rounds, aggregator: Aggregator, envoys: Envoys, on_client: Callable[[str], None]
    ) -> dict[str, int]:
        """Add the clients' updates to `aggregator`, in the order of their names.

        Returns the bytes that would have been transmitted.
        """
        plan, updates = rounds.plan, 0
        model = _as_transmitted(aggregator.model, plan.precision)
        down = _bytes_of(model)
        up = _bytes_of({name: tensor for name, tensor in model.items() if not is_given(name)})
        participants = list(rounds.participants.items())
        lost = self._lost.get(rounds.round_number, {})
        secure = SecureRound(rounds, aggregator, lost) if isinstance(aggregator, SumAggregator) else None
        answers = envoys.run_round(participants, rounds.round_number, model, rounds.rate_factor)
        for client, (results, trained, sizes) in zip(rounds.participants, answers, strict=True):
            rounds.registered[client] = sizes
            update = UpdateMessage(experiment=plan.name, envoy=client, round=rounds.round_number, results=results)
            try:
                rounds.check(update)
                tasks = [task for task in rounds.participants[client] if task.task_type == "train"]
                clips = sum(rounds.bounded(client, task, results[task.name].size) for task in tasks)
                if secure:
                    secure.add(client, results, trained)
                elif trained and clips:
                    aggregator.add(_as_transmitted(trained, plan.precision), clips, error_prefix=str(update))
                if not secure:
                    rounds.count(update)
            except UpdateRefusedError as error:
                rounds.refuse(client, update.reason_in(error))
            updates += bool(trained)
            on_client(client)
        if secure:
            secure.finish()
        rounds.check_answers()
        return {"bytes_up": updates * up, "bytes_down": len(rounds.participants) * down}

    def initial_model(self) -> torch.nn.Module:
        """Return a new model with the weights that the experiment began with."""
        return self.definition.model_provider.model_with(self.definition.tensors)

    def last_model(self) -> torch.nn.Module:
        """Return a new model with the weights of the last round."""
        return self.definition.model_provider.model_with(self._checkpoint.model)

    def best_model(self, metric: str | None = None) -> torch.nn.Module:
        """Return a new model with the best weights so far, by another `metric` of `also_best` too.

        Raises SimulationError if no round has validated any.
        """
        which = name_of_best(metric)
        if which not in self._checkpoint.best:
            raise SimulationError(f"experiment '{self.definition.plan.name}' has no {which} model yet")
        return self.definition.model_provider.model_with(self._checkpoint.best[which])

    @property
    def _keeps_state(self) -> bool:
        """Tell whether something stays with the clients from round to round."""
        return self.definition.opt_treatment == "CONTINUE_LOCAL" or bool(self.definition.model_provider.local_tensors)

    def _start_envoys(self) -> AbstractContextManager[Envoys]:
        definition, states = self.definition, None
        if self._keeps_state:
            keeps_optimizer = definition.opt_treatment == "CONTINUE_LOCAL"
            states = ClientStates(
                self.folder.resolve() / "clients", definition.model_provider.local_tensors, keeps_optimizer
            )
        if self._workers == 1:
            return nullcontext(VirtualEnvoys(definition, self._open_shard, states))
        # Actors get the global model round by round.
        return ray_envoys(*self._ray, replace(definition, tensors={}), self._open_shard, states)


def _bytes_of(tensors: Tensors) -> int:
    """Return how many bytes `tensors` are when they are transmitted."""
    return len(describe(tensors, {}).pack()) + sum(tensor.nbytes for tensor in tensors.values())


def _as_transmitted(tensors: Tensors, precision: str) -> Tensors:
    """Return `tensors` as they arrive, in the precision of the transmission."""
    if precision == "float32":
        return tensors
    return {name: tensor.astype("<f2") if tensor.dtype.kind == "f" else tensor for name, tensor in tensors.items()}
