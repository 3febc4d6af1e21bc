"""OpenFL 1.7.1 as it comes: `fx director start`, `fx envoy start`, and its own interactive API."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from openfl import interface
from openfl.interface.interactive_api.experiment import FLExperiment, ModelInterface, TaskInterface
from openfl.interface.interactive_api.federation import Federation
from torch.nn.utils import parametrize

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

USER = "scientist"
PLUGIN = "openfl.plugins.frameworks_adapters.pytorch_adapter.FrameworkAdapterPlugin"


def measure(job: Job, folder: Path) -> Measured:
    """Run the job on OpenFL as it comes, and return what was measured. Raises BenchmarkError."""
    if job.tls or job.float16 or job.workload == "adam":
        raise BenchmarkError("--tls, --float16 and the workload 'adam' are for this project's engine only")
    with Processes(folder, None, USER) as processes:
        _start(job, processes)
        processes.wait_until_ready(job.names, READY_SECONDS)
        say("director and envoys are ready")
        with MemoryWatch(processes.pid("director"), map(processes.pid, job.names)) as memory:
            return _run(job, processes, memory)


def _start(job: Job, processes: Processes) -> None:
    fx = [sys.executable, str(Path(sys.executable).with_name("fx"))]
    address = {"listen_host": "localhost", "listen_port": processes.port}
    settings: dict[str, dict] = {"settings": address | {"sample_shape": ["1"], "target_shape": ["1"]}}
    _start_one(processes, "director", settings, [*fx, "director", "start", "--disable-tls", "-c"])
    _wait_for_director(processes)
    # Otherwise an envoy installs, from a package index, all that is installed here already.
    settings = {"params": {"install_requirements": False}, "shard_descriptor": {"template": shard.TEMPLATE}}
    for name in job.names:
        options = ["-n", name, "-dh", "localhost", "-dp", str(processes.port), "--disable-tls", "-ec"]
        _start_one(processes, name, settings, [*fx, "envoy", "start", *options])


def _wait_for_director(processes: Processes) -> None:
    """An envoy of OpenFL's that finds no director ends."""
    with time_limit("the director did not listen"):
        while True:
            with suppress(OSError), socket.create_connection(("localhost", processes.port)):
                return
            processes.check()
            time.sleep(0.1)


def _start_one(processes: Processes, name: str, settings: dict, command: list[str]) -> None:
    """Start `command`, which ends with the option for the settings' file, in a folder of its own."""
    folder = processes.folder / name
    folder.mkdir()
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    # `fx` imports its commands as modules `director`, `envoy` and so on, and would find this project's `director`.
    path = os.pathsep.join((str(Path(interface.__file__).parent), os.environ["PYTHONPATH"]))
    # Without a buffer, as the director's log tells when a round ends.
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    processes.run(name, [*command, "settings.yaml"], cwd=folder, env=env)


def _run(job: Job, processes: Processes, memory: MemoryWatch) -> Measured:
    model = _picklable_model(job.workload)
    began = time.monotonic()
    with time_limit("the experiment was not submitted"):
        experiment = _submit(model, job.rounds, processes)
    submitted = time.monotonic() - began
    say(f"submitted after {submitted:.1f} s")
    ends: list[float] = []
    while len(ends) < job.rounds:
        with time_limit(f"round {len(ends)} did not end"):
            ends.append(_wait_for_log(processes, f"Saving round {len(ends)} model"))
        say(f"round {len(ends) - 1} ended {ends[-1] - began:.1f} s after the submission began")
    _wait_for_log(processes, "Experiment Completed")
    # OpenFL's last model is the one that the last round began with. It fills the model that was submitted, so that a
    # new one is needed to compare it with.
    workloads.check(_picklable_model(job.workload), experiment.get_last_model(), job.rounds - 1)
    return Measured(
        seconds=[end - start for start, end in pairwise([began, *ends])],
        submit_to_first_round=ends[0] - began,
        rss_mb=memory.peaks(),
        first_round={"submission": submitted},
    )


def _picklable_model(workload: str) -> torch.nn.Module:
    """OpenFL pickles the model, which Wav2Vec2's weight-normed convolution refuses: there the norm becomes a weight."""
    model = workloads.create_model(workload)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def _submit(model: torch.nn.Module, rounds: int, processes: Processes) -> FLExperiment:
    tasks = TaskInterface()
    tasks.register_fl_task(model="model", data_loader="items", device="device", optimizer="optimizer")(
        workloads.add_step
    )
    # OpenFL refuses an experiment without validation; this one gives no metric.
    tasks.register_fl_task(model="model", data_loader="items", device="device")(workloads.validate_nothing)
    # OpenFL packs all of the current folder and leaves its own files there.
    workspace = processes.folder / "workspace"
    workspace.mkdir()
    with _current_folder(workspace):
        experiment = FLExperiment(Federation(USER, "localhost", processes.port, tls=False), "benchmark")
        experiment.start(
            model_provider=ModelInterface(model, torch.optim.SGD(model.parameters(), lr=workloads.STEP), PLUGIN),
            task_keeper=tasks,
            data_loader=workloads.FewItemsData(),
            rounds_to_train=rounds,
        )
    return experiment


def _wait_for_log(processes: Processes, words: str) -> float:
    """Wait for `words` in the director's log and return when: only it tells at once that a round is aggregated."""
    while words not in processes.log("director").read_text(errors="replace"):
        processes.check()
        time.sleep(0.05)
    return time.monotonic()


@contextmanager
def _current_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
