"""The process that runs one experiment on a node, started by the envoy's keeper: `python -m openfl_audio.envoy.worker`.

It loads its libraries, then gets what to do (a `Job`) by its link to the envoy, which is its standard input. So an
envoy that expects an experiment can have a worker ready. It never dials the director, and is told no key.
"""

import argparse
import faulthandler
import importlib
import importlib.util
import io
import json
import logging
import os
import select
import socket
import sys
import traceback
from pathlib import Path
from typing import IO

import torch
from openfl.federated import Plan

from openfl_audio.config import load_settings, parse_change
from openfl_audio.envoy.job import Job
from openfl_audio.envoy.link import Link
from openfl_audio.envoy.policy import without_values
from openfl_audio.envoy.progress_sender import ProgressSender
from openfl_audio.envoy.round_loop import RoundCollaborator
from openfl_audio.envoy.settings import EnvoyFile, build_shard_descriptor
from openfl_audio.envoy.worker_client import WorkerClient
from openfl_audio.errors import ArchiveError, DirectorRefusedError, PolicyError
from openfl_audio.node import model_interface  # noqa: F401  what pickles refer to is loaded while there is time
from openfl_audio.node.compatibility import EnvironmentMismatchError, check_environment
from openfl_audio.node.local_state import ClientStates
from openfl_audio.node.objects import build_objects
from openfl_audio.node.task_runner import TaskRunner, seed_generators
from openfl_audio.protocol.plan import ENVIRONMENT_FILE, PLAN_FILE

# A notebook that has just connected submits its experiment within this time, or much later.
SOON_SECONDS = 2.0
# Exceptions whose sentences are about versions, the director, the submission and the site's policy.
WITHOUT_VALUES = (EnvironmentMismatchError, DirectorRefusedError, ArchiveError, PolicyError)


def run_experiment(name: str, settings: EnvoyFile, config: Path, job: Job, link: Link, progress: Link) -> None:
    """Take part in the experiment of `job` until it ends. The envoy is asked on `link`, and told of `progress`."""
    shard_descriptor = build_shard_descriptor(settings.shard_descriptor, config.parent)

    # From here on the experiment's own code is imported first, before installed packages of the same name.
    os.chdir(job.workspace)
    sys.path.insert(0, job.workspace)
    check_environment(json.loads(Path(ENVIRONMENT_FILE).read_text()), f"envoy '{name}'")

    plan = Plan.parse(Path(PLAN_FILE))
    # An envoy of upstream OpenFL reads its own classes in the plan; ours fetch a model in one call.
    plan.config["collaborator"]["template"] = "openfl_audio.envoy.round_loop.RoundCollaborator"
    extras = plan.config["experiment"]["settings"]
    if job.shown:
        plan.deserialize_interface_objects = lambda: build_objects(Path(job.workspace))
    plan.runner_ = TaskRunner()
    plan.runner_.seed = extras["seed"]
    plan.runner_.task_timeout_seconds = settings.params.task_timeout_seconds
    client, reporter = WorkerClient(link, extras["precision"]), WorkerClient(progress, extras["precision"])
    sender = ProgressSender(reporter.report, name, job.experiment, settings.params.reports, Path(job.log))
    sender.start()
    # As a simulation does: what opening the shard draws is the same in every process.
    seed_generators(f"{extras['seed']}:{name}")
    collaborator: RoundCollaborator = plan.get_collaborator(name, client=client, shard_descriptor=shard_descriptor)
    keeps_optimizer = plan.runner_.opt_treatment == "CONTINUE_LOCAL"
    if keeps_optimizer or extras["local_tensors"]:
        folder = Path(job.workspace).with_name("state")
        plan.runner_.states = ClientStates(folder, extras["local_tensors"], keeps_optimizer, plan.federation_uuid)
    collaborator.run()
    sender.flush()


def told_of(error: Exception) -> str:
    """Return what a site that tells no values tells of an exception: lines of code, or a sentence without a value."""
    return f"{type(error).__name__}: {error}" if isinstance(error, WITHOUT_VALUES) else without_values(error)


def load_libraries(jobs: IO[bytes] | socket.socket) -> None:
    """Load what nearly every experiment needs, and, if no job comes soon, what only most of them need."""
    # The first optimizer of a process loads torch's compiler, which takes more than a second.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    # It takes seconds, for which a job that needs none of it would wait.
    soon, _, _ = select.select([jobs], [], [], SOON_SECONDS)
    if not soon and importlib.util.find_spec("transformers"):
        importlib.import_module("transformers.modeling_utils")


def main() -> int:
    """Wait for a job, run it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="openfl_audio.envoy.worker")
    parser.add_argument("-n", "--name", required=True)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    end = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with Path(os.devnull).open() as nothing:  # what a task starts inherits no link
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    load_libraries(end)
    link = Link(end)
    try:
        message, _, file = link.receive()
        if file is None:
            raise EOFError("no second link came along")
    except (EOFError, OSError):
        return 0  # the envoy has ended, or has no experiment after all
    job = Job.model_validate(message)
    with Path(job.log).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # What a task prints is in the log when it was printed, also after a crash.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("openfl").setLevel(logging.WARNING)

    try:
        settings = load_settings(arguments.config, EnvoyFile, dict(map(parse_change, arguments.set)))
        run_experiment(arguments.name, settings, arguments.config, job, link, Link(socket.socket(fileno=file)))
    except Exception as error:
        traceback.print_exc()
        Path(job.failure).write_text(told_of(error), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
