"""The four modes of an experiment: who its clients are, and where its rounds run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from openfl_audio.envoy.settings import ShardDescriptorSettings, build_shard_descriptor
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.local_federation import LocalFederation, stop_left_over
from openfl_audio.experiments.progress import RunProgress
from openfl_audio.notebook.interactive_api import Federation, FLExperiment
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import KNOWN_NO_MEANS, name_of_best
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.training.run_settings import RunSettings, weights_of
from openfl_audio.training.workload import Workload

# Validates the global model on the validation clips of all, so that a score means the same in every mode.
EVALUATOR = "evaluation"
USER = "scientist"
EXPERIMENT = "run"
READY_SECONDS = 300.0


@dataclass(frozen=True)
class Clients:
    """`trainers` have a shard each of `number` that the corpus is divided into; the evaluator has the whole of it."""

    workload: Workload[Any]
    settings: RunSettings
    data: Path
    number: int
    trainers: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Return the names of the clients that train, and the evaluator."""
        return [*self.trainers, EVALUATOR]

    def shard(self, name: str) -> ShardDescriptorSettings:
        """Return the shard of a client as an envoy's settings name it; the evaluator has all of the data."""
        rank, number = (1, 1) if name == EVALUATOR else (_rank(name), self.number)
        return ShardDescriptorSettings(**self.workload.shard(self.settings, self.data, rank, number))

    @property
    def trained_part(self) -> str:
        """The part of the corpus that trains, as "rank,world size": all of it, or the shard of one client alone."""
        return f"{_rank(self.trainers[0])},{self.number}" if len(self.trainers) == 1 else "1,1"

    def open(self, name: str) -> ShardDescriptor:
        """Build a client's shard descriptor. Paths in it are relative to the current folder."""
        return build_shard_descriptor(self.shard(name), Path.cwd())


def _rank(trainer: str) -> int:
    """Return the rank, from 1, of a client by its name in `client_names`."""
    return int(trainer.rpartition("-")[2]) + 1


def client_names(number: int) -> list[str]:
    """Names that sort as their numbers do, from 0.

    >>> client_names(11)[::5]
    ['client-00', 'client-05', 'client-10']
    """
    return [f"client-{i:0{len(str(number - 1))}}" for i in range(number)]


def choose_clients(
    workload: Workload[Any], settings: RunSettings, data: Path, mode: str, client_ids: Sequence[int]
) -> list[Clients]:
    """The clients of each experiment that `mode` is: one, or with `individual` one for each of `client_ids`.

    Raises SettingsError for clients that do not exist.
    """
    if mode == "centralized":
        return [Clients(workload, settings, data, 1, client_names(1))]
    if settings.clients == "natural":
        if mode == "federated":
            raise SettingsError("federated starts processes for every client: say how many with --clients")
        number = workload.natural_clients(settings, data)
    else:
        number = settings.clients
    names = client_names(number)
    if mode != "individual":
        return [Clients(workload, settings, data, number, names)]
    unknown = [i for i in client_ids if not -number <= i < number]
    if unknown:
        raise SettingsError(f"client ids {unknown} are not from {-number} to {number - 1}")
    return [Clients(workload, settings, data, number, [names[i]]) for i in client_ids]


def start_arguments(clients: Clients) -> dict[str, Any]:
    """Return the arguments of `FLExperiment.start` and `Simulation.start`."""
    settings = clients.settings
    evaluators = [] if _validate_where_they_live(clients) else [EVALUATOR]
    participation = Participation(
        **_share(settings, len(clients.trainers)),
        seed=settings.seed,
        evaluators=evaluators,
        validate_every=settings.validate_every,
    )
    arguments = clients.workload.start_arguments(settings)
    if settings.init is not None:
        weights = weights_of(settings.init)
        arguments["model_provider"].start_from(weights if settings.init == weights else weights.parent)
    return arguments | {
        "rounds_to_train": settings.rounds,
        "opt_treatment": settings.opt_treatment,
        "envoys": [*clients.trainers, *evaluators],
        "participation": participation,
        "aggregation": settings.aggregation,
        "privacy": settings.privacy,
        "patience": settings.patience or None,
        "keep": settings.keep,
        "precision": settings.precision,
    }


def _validate_where_they_live(clients: Clients) -> bool:
    """Tell whether the clients choose the best model: an evaluator has none of the tensors that stay with them.

    It chooses all the same by a metric that does not merge.
    """
    workload, settings = clients.workload, clients.settings
    metric = workload.best(settings)[0]
    unit = workload.mean_over(settings).get(metric, None if metric in KNOWN_NO_MEANS else "clips")
    return bool(workload.local_tensors(settings)) and unit is not None


def _share(settings: RunSettings, clients: int) -> dict[str, Any]:
    """Return the arguments of Participation that say how many of the `clients` train in a round."""
    if clients == 1:
        return {}
    if settings.fraction_rounding == "up":
        return {"fraction": settings.fraction, "min_trainers": settings.min_trainers}
    # Rounded first, as 0.29 * 100 is 28.999999999999996.
    return {"count": min(clients, max(settings.min_trainers, math.floor(round(settings.fraction * clients, 9))))}


def simulate(
    clients: Clients, out: Path, progress: RunProgress, workers: int, ray_address: str | None, gpus_per_client: float
) -> dict[str, torch.nn.Module]:
    """All modes but federated: centralized has one client, individual one of many.

    Returns the models as `kept_models` has them.
    """
    simulation = Simulation(
        clients.names, clients.open, out, workers=workers, ray_address=ray_address, gpus_per_client=gpus_per_client
    )
    arguments = start_arguments(clients)
    simulation.start(EXPERIMENT, **arguments)
    progress.show_past(simulation.records)
    for record in simulation.run(on_client=progress.show_client):
        progress.show_round(record)
    return kept_models(simulation, arguments)


def federate(clients: Clients, out: Path, progress: RunProgress) -> dict[str, torch.nn.Module]:
    """A director and envoys on this machine, with TLS; an experiment that an earlier run began goes on.

    Returns the models as `kept_models` has them.
    """
    certificates = out / "certificates"
    if not certificates.exists():
        write_certificates(certificates, director_hosts=["127.0.0.1"], envoys=clients.names, users=[USER])
    with LocalFederation(out, certificates, USER) as local:
        stop_left_over(local.folder)
        local.start_director()
        for name in clients.names:
            local.start_envoy(name, clients.shard(name).model_dump())
        local.wait_until_ready(clients.names, READY_SECONDS)
        federation = Federation(
            USER,
            "127.0.0.1",
            local.port,
            cert_chain=certificates / "ca.crt",
            api_cert=certificates / f"{USER}.crt",
            api_private_key=certificates / f"{USER}.key",
        )
        arguments = start_arguments(clients)
        experiment = FLExperiment(federation, EXPERIMENT, workspace=clients.workload.packages)
        if (out / "director" / EXPERIMENT).exists():
            experiment.attach(EXPERIMENT, arguments["model_provider"])
        else:
            experiment.start(**arguments)
        for message in federation.dir_client.stream_history(EXPERIMENT):
            if isinstance(message, dict):
                progress.show_round(message)
        return kept_models(experiment, arguments)


def kept_models(experiment: Simulation | FLExperiment, arguments: dict[str, Any]) -> dict[str, torch.nn.Module]:
    """The best and the last model, and for each metric of `also_best` the best by that, as "best-METRIC"."""
    others = {name_of_best(metric): experiment.best_model(metric) for metric in arguments.get("also_best", ())}
    return {"best": experiment.best_model(), **others, "last": experiment.last_model()}
