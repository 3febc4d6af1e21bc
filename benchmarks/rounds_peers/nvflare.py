"""NVIDIA FLARE as deployed on one machine (its POC mode): a server, clients, and the job in `nvflare_app`.

The startup kits are those that `nvflare poc prepare` makes, and each site runs its kit's `sub_start.sh`, as
`nvflare poc start` has it do. Server and clients begin a process each for a job; the client's is the worker. Intervals
at which they look for work are NVIDIA FLARE's own. The server saves the model after each round, as it does by default.
"""

import contextlib
import json
import os
import re
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psutil
import yaml

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
    time_limit,
)
from benchmarks.rounds_peers.workloads import STEP, create_model

ENVIRONMENT = REPOSITORY / "runs" / "peers" / "nvflare"
REQUIREMENT = "nvflare==2.9.*"
PYTHON = str(ENVIRONMENT / "bin" / "python")
NVFLARE = [str(ENVIRONMENT / "bin" / "nvflare")]
PROJECT = "benchmark"
USER = "scientist@example.org"


def measure(job: Job, folder: Path) -> Measured:
    """Run the job on FLARE, in an environment of its own, and return what was measured. Raises BenchmarkError."""
    if job.float16 or job.workload == "adam":
        raise BenchmarkError("--float16 and the workload 'adam' are for this project's engine only")
    make_environment(ENVIRONMENT, "nvflare", REQUIREMENT)
    try:
        with Processes(folder, None, "") as processes:
            env = _environment(folder)
            kits = _make_startup_kits(job, processes, env)
            for name in ("server", *job.names):
                processes.run(name, ["bash", str(kits / name / "startup" / "sub_start.sh"), "--once"], folder, env)
            _wait_until_ready(job, processes, env)
            say("server and clients are ready")
            with MemoryWatch(processes.pid("server"), map(processes.pid, job.names)) as memory:
                return _run(job, processes, memory, kits / USER, env)
    finally:
        _kill_jobs(folder)


def _environment(folder: Path) -> dict[str, str]:
    """Return variables with which all that NVIDIA FLARE keeps between runs is in a folder of this run."""
    path = f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"HOME": str(folder), "NVFLARE_POC_WORKSPACE": str(folder / "poc"), "PATH": path}
    env.pop("PYTHONPATH", None)  # this project's packages are none of NVIDIA FLARE's
    return env


def _make_startup_kits(job: Job, processes: Processes, env: dict[str, str]) -> Path:
    """A folder for each site and the user, with its certificate and settings."""
    sites = {"server": {"type": "server", "fed_learn_port": processes.port}}
    sites |= {name: {"type": "client"} for name in job.names}
    sites[USER] = {"type": "admin", "role": "project_admin"}
    common = {"org": "example", "connection_security": "mtls" if job.tls else "clear"}
    builders = ("workspace.WorkspaceBuilder", "static_file.StaticFileBuilder", "cert.CertBuilder")
    project = {
        "api_version": 3,
        "name": PROJECT,
        "participants": [{"name": name} | site | common for name, site in sites.items()],
        "builders": [{"path": f"nvflare.lighter.impl.{builder}"} for builder in builders],
    }
    file = processes.folder / "project.yml"
    file.write_text(yaml.safe_dump(project, sort_keys=False))
    _call([*NVFLARE, "poc", "prepare", "-i", str(file)], env)
    return Path(env["NVFLARE_POC_WORKSPACE"], PROJECT, "prod_00")


def _call(command: list[str], env: dict[str, str]) -> str:
    """Return what a command of NVIDIA FLARE's writes to standard output. Raises BenchmarkError if it fails."""
    with time_limit(f"{' '.join(command)} did not end"):
        answer = subprocess.run(command, env=env, capture_output=True, text=True)
    if answer.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with exit code {answer.returncode}: {answer.stderr[-2000:]}")
    return answer.stdout


def _wait_until_ready(job: Job, processes: Processes, env: dict[str, str]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            online = json.loads(_call([*NVFLARE, "--format", "json", "system", "status"], env))["data"]["clients"]
        except BenchmarkError as error:  # the server does not listen yet
            online, problem = [], str(error)
        else:
            problem = f"of {job.names} only {online}"
        if len(online) == job.envoys:
            return
        processes.check()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"after {READY_SECONDS:.0f} s not all clients are online: {problem}")


def _run(job: Job, processes: Processes, memory: MemoryWatch, kit: Path, env: dict[str, str]) -> Measured:
    shapes, report, config = (processes.folder / name for name in ("shapes.json", "report.jsonl", "config.json"))
    shapes.write_text(json.dumps([list(weight.shape) for weight in create_model(job.workload).parameters()]))
    settings = {"rounds": job.rounds, "clients": job.envoys, "step": STEP, "shapes": str(shapes), "report": str(report)}
    config.write_text(json.dumps(settings))
    submit = Path(__file__).with_name("nvflare_app") / "submit.py"
    # The server's job is another process: only the clock on the wall is common to both.
    began = time.time()
    _call([PYTHON, str(submit), str(kit), USER, str(config)], env)
    submitted = time.time() - began
    lines = follow_report(report, job.rounds, "the job", processes)
    return Measured(
        seconds=[after["time"] - before["time"] for before, after in pairwise(lines)],
        submit_to_first_round=lines[1]["time"] - began,
        rss_mb=memory.peaks(),
        bytes_up=_bytes_of_model(processes.log(job.names[0]), "tx"),
        bytes_down=_bytes_of_model(processes.log(job.names[0]), "ref"),
        first_round={"submission": submitted, "job_start": lines[0]["time"] - began - submitted},
    )


def _bytes_of_model(log: Path, kind: str) -> int | None:
    """Bytes by a client's log, None if it has none: "ref" is what it fetched from the server, "tx" what it offered."""
    sizes = re.findall(rf"download {kind}.* done: .*\(([\d,]+) bytes\)", log.read_text(errors="replace"))
    return int(sizes[-1].replace(",", "")) if sizes else None


def _kill_jobs(folder: Path) -> None:
    """A site's processes for a job are in sessions of their own, and outlive the site."""
    for process in psutil.process_iter(["cmdline"]):
        if any(argument.startswith(str(folder / "poc")) for argument in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
