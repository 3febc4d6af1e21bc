"""Flower in its deployment runtime: a superlink, supernodes, and the app in `flower_app` submitted by `flwr run`."""

import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.rounds_peers.measure import (
    READY_SECONDS,
    REPOSITORY,
    BenchmarkError,
    Job,
    Measured,
    MemoryWatch,
    Processes,
    follow_report,
    make_environment,
    say,
)
from benchmarks.rounds_peers.workloads import STEP, create_model
from openfl_audio.experiments.local_federation import free_port

ENVIRONMENT = REPOSITORY / "runs" / "peers" / "flower"
REQUIREMENT = "flwr==1.41.*"


def measure(job: Job, folder: Path) -> Measured:
    """Run the job on Flower, in an environment of its own, and return what was measured. Raises BenchmarkError."""
    if job.tls or job.float16 or job.workload == "adam":
        raise BenchmarkError("--tls, --float16 and the workload 'adam' are for this project's engine only")
    make_environment(ENVIRONMENT, "flower-superlink", REQUIREMENT)
    with Processes(folder, None, "") as processes:
        env = environment_at(ENVIRONMENT, folder, processes.port)
        start(ENVIRONMENT, dict.fromkeys(job.names, ()), processes, env)
        with MemoryWatch(processes.pid("superlink"), map(processes.pid, job.names)) as memory:
            return _run(job, processes, memory, env)


def environment_at(environment: Path, folder: Path, port: int) -> dict[str, str]:
    """Return the variables for Flower's programs in a virtual environment, and a superlink on a port.

    The superlink's address and all that Flower keeps between runs is in a folder of this run.
    """
    home = folder / "flower_home"
    home.mkdir()
    connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PATH": path}
    env.pop("PYTHONPATH", None)  # this project's packages are none of Flower's
    return env


def start(environment: Path, nodes: Mapping[str, Iterable[str]], processes: Processes, env: dict[str, str]) -> None:
    """Start a superlink and supernodes from a virtual environment, and wait until all of them are connected.

    Args:
        environment: folder of the virtual environment.
        nodes: names of the supernodes, each with further options of its command.
        processes: run them.
        env: variables of `environment_at`.

    Raises:
        BenchmarkError: it takes too long.
    """
    port, programs = str(processes.port), environment / "bin"
    superlink = [programs / "flower-superlink", "--port", port, "--disable-runtime-dependency-installation"]
    processes.run("superlink", [*map(str, superlink), "--insecure"], cwd=processes.folder, env=env)
    for name, options in nodes.items():
        supernode = [programs / "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", free_port(), *options]
        processes.run(name, [*map(str, supernode), "--insecure"], cwd=processes.folder, env=env)
    _wait_until_online(environment, len(nodes), processes, env)
    say("superlink and supernodes are ready")


def run_app(environment: Path, app: Path, config: Mapping[str, Any], processes: Processes, env: dict[str, str]) -> None:
    """Submit a Flower App with its run configuration. Raises BenchmarkError if that fails."""
    words = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    command = [str(environment / "bin" / "flwr"), "run", str(app), "--run-config", words]
    processes.run("run", command, processes.folder, env)
    if code := processes.wait_for_exit("run", READY_SECONDS):
        raise BenchmarkError(f"flwr run ended with exit code {code}")


def _wait_until_online(environment: Path, number: int, processes: Processes, env: dict[str, str]) -> None:
    command = [str(environment / "bin" / "flwr"), "supernode", "list", "--format", "json"]
    deadline = time.monotonic() + READY_SECONDS
    while True:
        answer = subprocess.run(command, env=env, cwd=processes.folder, capture_output=True, text=True, timeout=60)
        if answer.returncode == 0 and answer.stdout.count('"online"') >= number:
            return
        processes.check()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"after {READY_SECONDS:.0f} s not all supernodes are online: {answer.stdout}")


def _run(job: Job, processes: Processes, memory: MemoryWatch, env: dict[str, str]) -> Measured:
    shapes, report = processes.folder / "shapes.json", processes.folder / "report.jsonl"
    shapes.write_text(json.dumps([list(weight.shape) for weight in create_model(job.workload).parameters()]))
    config = {"rounds": job.rounds, "nodes": job.envoys, "step": STEP, "shapes": str(shapes), "report": str(report)}
    app = Path(__file__).with_name("flower_app")
    # The serverapp is another process: only the clock on the wall is common to both.
    began = time.time()
    run_app(ENVIRONMENT, app, config, processes, env)
    submitted = time.time() - began
    lines = follow_report(report, job.rounds, "the app", processes)
    return Measured(
        seconds=[after["time"] - before["time"] for before, after in pairwise(lines)],
        submit_to_first_round=lines[1]["time"] - began,
        rss_mb=memory.peaks(),
        # What is in the messages' arrays, without Flower's own fields.
        bytes_up=lines[-1]["bytes"],
        bytes_down=lines[-1]["bytes"],
        first_round={"submission": submitted, "app_start": lines[0]["time"] - began - submitted},
    )
