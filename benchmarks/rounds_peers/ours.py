"""Director and envoys of this project, each in a process of its own."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import benchmarks.rounds_peers
from benchmarks.rounds_peers import shard, workloads
from benchmarks.rounds_peers.measure import (
    READY_SECONDS,
    BenchmarkError,
    Job,
    Measured,
    MemoryWatch,
    Processes,
    say,
    time_limit,
)
from openfl_audio.notebook.interactive_api import (
    DirectorError,
    ExperimentFailedError,
    Federation,
    FLExperiment,
    ModelInterface,
    TaskInterface,
)
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.secure_aggregation import SecureAggregation

USER = "scientist"
# Envoys load a worker's libraries as soon as a notebook connects. In the first experiment of a run there is no time for
# that; people take longer than this between the cell that connects and the one that starts.
PAUSE_SECONDS = 20.0
# The range of changes in a secure round: a few times what the task adds.
VALUE_RANGE = 10 * workloads.STEP


def measure(job: Job, folder: Path) -> Measured:
    """Run the job on this project, and return what was measured. Raises BenchmarkError."""
    certificates = None
    if job.tls:
        certificates = folder / "certificates"
        write_certificates(certificates, director_hosts=["127.0.0.1"], envoys=job.names, users=[USER])
    with Processes(folder, certificates, USER) as processes:
        processes.start_director()
        for name in job.names:
            processes.start_envoy(name, {"template": shard.TEMPLATE, "params": {}}, sandbox=job.sandbox)
        processes.wait_until_ready(job.names, READY_SECONDS)
        say("director and envoys are ready")
        experiment = FLExperiment(_connect(processes, certificates), "benchmark", workspace=benchmarks.rounds_peers)
        with MemoryWatch(processes.pid("director"), map(processes.pid, job.names)) as memory:
            try:
                return _run(job, experiment, memory)
            except (DirectorError, ExperimentFailedError) as error:
                raise BenchmarkError(str(error)) from error


def _connect(processes: Processes, certificates: Path | None) -> Federation:
    if certificates is None:
        return Federation(USER, "127.0.0.1", processes.port, tls=False)
    files = {"cert_chain": "ca.crt", "api_cert": f"{USER}.crt", "api_private_key": f"{USER}.key"}
    paths = {argument: certificates / file for argument, file in files.items()}
    return Federation(USER, "127.0.0.1", processes.port, tls=True, **paths)


def _run(job: Job, experiment: FLExperiment, memory: MemoryWatch) -> Measured:
    began = time.monotonic()
    with time_limit("the experiment was not submitted"):
        _submit(job, experiment)
    submitted = time.monotonic() - began
    say(f"submitted after {submitted:.1f} s")
    history = _records(experiment)
    records = []
    for number in range(job.rounds):
        with time_limit(f"round {number} did not end"):
            records.append(next(history))
        if number == 0:
            first_round_done = time.monotonic() - began
        say(f"round {number}: {records[-1]['seconds']:.2f} s")
    start = workloads.create_model(job.workload)
    workloads.check(start, experiment.get_last_model(), job.rounds, float16=job.float16)
    peaks = memory.peaks()
    ready = _first_round_with_ready_workers(job, experiment.federation)
    return Measured(
        seconds=[record["seconds"] for record in records],
        submit_to_first_round=first_round_done,
        rss_mb=peaks,
        # The records have the sums over all envoys.
        bytes_up=round(statistics.median(record["bytes_up"] for record in records[1:]) / job.envoys),
        bytes_down=round(statistics.median(record["bytes_down"] for record in records[1:]) / job.envoys),
        first_round={"submission": submitted, "round": records[0]["seconds"], "with_ready_workers": ready},
    )


def _records(experiment: FLExperiment) -> Iterator[dict[str, Any]]:
    """Records of rounds as they end, without what the director tells in between."""
    messages = experiment.federation.dir_client.stream_history(experiment.experiment_name)
    return (message for message in messages if isinstance(message, dict))


def _first_round_with_ready_workers(job: Job, federation: Federation) -> float:
    """Seconds from submission to the end of the first round, when the notebook was connected for a while before."""
    time.sleep(PAUSE_SECONDS)
    experiment = FLExperiment(federation, "benchmark-ready", workspace=benchmarks.rounds_peers)
    began = time.monotonic()
    _submit(replace(job, rounds=1), experiment)
    with time_limit("the first round did not end"):
        next(_records(experiment))
    return time.monotonic() - began


def _submit(job: Job, experiment: FLExperiment) -> None:
    tasks = TaskInterface()
    tasks.register_fl_task(model="model", data_loader="items", device="device", optimizer="optimizer")(
        workloads.add_step
    )
    changes: dict[str, Any] = {"precision": "float16"} if job.float16 else {}
    if job.secure:
        settings = SecureAggregation(value_range=VALUE_RANGE, largest_weight=shard.ITEMS)
        changes |= {"envoys": job.names, "secure_aggregation": settings}
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    if job.workload == "adam":
        optimizer = torch.optim.Adam
        changes["opt_treatment"] = "CONTINUE_GLOBAL"
    model = partial(workloads.create_model, job.workload)
    experiment.start(
        model_provider=ModelInterface(model, partial(optimizer, lr=workloads.STEP)),
        task_keeper=tasks,
        data_loader=workloads.FewItemsData(),
        rounds_to_train=job.rounds,
        **changes,
    )
