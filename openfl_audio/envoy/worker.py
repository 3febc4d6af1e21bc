"""The process that runs one experiment on a node, started by the envoy's keeper: `python -m openfl_audio.envoy.worker`.

It loads its libraries, then gets what to do (a `Job`) by its link to the envoy, which is its standard input, with
three files: a link for progress, one for its output, and one for why it failed. So an envoy that expects an experiment
can have a worker ready. It never dials the director, is told no key, and reads no settings.
"""

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

from openfl_audio.envoy.job import Job
from openfl_audio.envoy.link import Link
from openfl_audio.envoy.policy import without_values
from openfl_audio.envoy.progress_sender import ProgressSender
from openfl_audio.envoy.rooms import STATE, WORKSPACE
from openfl_audio.envoy.round_loop import RoundCollaborator
from openfl_audio.envoy.settings import build_shard_descriptor
from openfl_audio.envoy.worker_client import WorkerClient
from openfl_audio.errors import ArchiveError, DirectorRefusedError, PolicyError, PrivacyError
from openfl_audio.node import model_interface  # noqa: F401  what pickles refer to is loaded while there is time
from openfl_audio.node.compatibility import EnvironmentMismatchError, check_environment
from openfl_audio.node.local_state import ClientStates
from openfl_audio.node.objects import build_objects
from openfl_audio.node.task_runner import TaskRunner, seed_generators
from openfl_audio.protocol.plan import ENVIRONMENT_FILE, PLAN_FILE, PUBLIC_PLAN_FILE, ExperimentPlan

# A notebook that has just connected submits its experiment within this time, or much later.
SOON_SECONDS = 2.0
# Exceptions whose sentences are about versions, the director, the submission, the site's policy, and privacy.
WITHOUT_VALUES = (EnvironmentMismatchError, DirectorRefusedError, ArchiveError, PolicyError, PrivacyError)


def run_experiment(job: Job, link: Link, progress: Link, log: int) -> None:
    """Take part in the experiment of `job` until it ends. The envoy is asked on `link`, and told of `progress`.

    `log` is the file that is standard output.
    """
    shard_descriptor = build_shard_descriptor(job.shard_descriptor, Path(job.folder))
    workspace = Path(job.room, WORKSPACE)

    # From here on the experiment's own code is imported first, before installed packages of the same name.
    os.chdir(workspace)
    sys.path.insert(0, str(workspace))
    check_environment(json.loads(Path(ENVIRONMENT_FILE).read_text()), f"envoy '{job.envoy}'")

    plan = Plan.parse(Path(PLAN_FILE))
    # An envoy of upstream OpenFL reads its own classes in the plan; ours fetch a model in one call.
    plan.config["collaborator"]["template"] = "openfl_audio.envoy.round_loop.RoundCollaborator"
    extras = plan.config["experiment"]["settings"]
    if job.shown:
        plan.deserialize_interface_objects = lambda: build_objects(workspace)
    plan.runner_ = TaskRunner()
    plan.runner_.seed = extras["seed"]
    plan.runner_.privacy = ExperimentPlan.model_validate_json(Path(PUBLIC_PLAN_FILE).read_bytes()).privacy
    plan.runner_.task_timeout_seconds = job.task_timeout_seconds
    client, reporter = WorkerClient(link, extras["precision"]), WorkerClient(progress, extras["precision"])
    sender = ProgressSender(reporter.report, job.envoy, job.experiment, job.reports, log)
    sender.start()
    # As a simulation does: what opening the shard draws is the same in every process.
    seed_generators(f"{extras['seed']}:{job.envoy}")
    collaborator: RoundCollaborator = plan.get_collaborator(job.envoy, client=client, shard_descriptor=shard_descriptor)
    keeps_optimizer = plan.runner_.opt_treatment == "CONTINUE_LOCAL"
    if keeps_optimizer or extras["local_tensors"]:
        folder = Path(job.room, STATE)
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
    end = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with Path(os.devnull).open() as nothing:  # what a task starts inherits no link
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    link = Link(end)
    try:
        link.send({})
        load_libraries(end)
        message, _, files = link.receive()
    except (EOFError, OSError):
        return 0  # the envoy has ended, or has no experiment after all
    job = Job.model_validate(message)
    progress, log, failure = files
    os.dup2(log, 1)
    os.dup2(log, 2)
    # What a task prints is in the log when it was printed, also after a crash.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("openfl").setLevel(logging.WARNING)

    try:
        run_experiment(job, link, Link(socket.socket(fileno=progress)), log)
    except Exception as error:
        traceback.print_exc()
        os.write(failure, told_of(error).encode(errors="replace"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
