"""Clients of a simulation: they run one after the other on one model per process, in this process or in Ray actors."""

import copy
import logging
import os
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

import torch
from openfl.federated import Plan
from openfl.interface.interactive_api.experiment import DataInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from openfl_audio.errors import SimulationError
from openfl_audio.node.local_state import ClientStates
from openfl_audio.node.task_runner import TaskRunner, seed_generators
from openfl_audio.notebook.experiment import Definition
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.plan import Task
from openfl_audio.protocol.shard_sizes import Sizes, sizes_of
from openfl_audio.protocol.tensors import Tensors

OpenShard = Callable[[str], ShardDescriptor]
# Results by task, the trained tensors, and the sizes of the client's shard.
Answer = tuple[dict[str, TaskResult], Tensors, Sizes]
Participants = Sequence[tuple[str, list[Task]]]
# So many clients' data stay open in a process for their next round.
OPEN_CLIENTS = 64
# So many answers may wait for a slower client before them, so that no worker waits. Each is a model in memory.
ANSWERS_PER_WORKER = 4
# A cluster may take so long to answer. Ray itself keeps trying for minutes, and its attempt cannot be ended.
CLUSTER_SECONDS = 25.0
CONNECT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"


class Envoys(Protocol):
    """The clients of a round, wherever they run."""

    def run_round(
        self, participants: Participants, round_number: int, model: Tensors, rate_factor: float
    ) -> Iterator[Answer]:
        """Yield answers in the order of `participants`. The tensors of one are valid until the next is asked for."""


def _failure(client: str, round_number: int, error: Exception) -> SimulationError:
    # By its text, not by repr(), which leaves out the file of an OSError.
    return SimulationError(f"client '{client}' in round {round_number}: {type(error).__name__}: {error}")


class VirtualEnvoys:
    """The clients of one process. They share its model, which is written over for each of them."""

    def __init__(self, definition: Definition, open_shard: OpenShard, states: ClientStates | None) -> None:
        self._definition, self._open_shard = definition, open_shard
        self._open: OrderedDict[str, tuple[DataInterface, Sizes]] = OrderedDict()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._runner = TaskRunner()
        self._runner.seed = definition.plan.participation.seed
        self._runner.privacy = definition.plan.privacy
        self._runner.set_optimizer_treatment(definition.opt_treatment)
        # A copy builds a model of its own: the one that the experiment began with stays as it is.
        self._runner.set_model_provider(copy.copy(definition.model_provider))
        self._runner.set_framework_adapter(Plan.build(definition.model_provider.framework_plugin, {}))
        self._runner.set_task_provider(definition.task_keeper)
        self._runner.states = states

    def run_round(
        self, participants: Participants, round_number: int, model: Tensors, rate_factor: float
    ) -> Iterator[Answer]:
        """Yield answers in the order of `participants`; see `Envoys`."""
        return (self.run(client, tasks, round_number, model, rate_factor) for client, tasks in participants)

    def run(self, client: str, tasks: list[Task], round_number: int, model: Tensors, rate_factor: float) -> Answer:
        """Return the answer of one client. Raises SimulationError, naming it, if a task or opening its shard fails."""
        try:
            data, sizes = self._data_of(client)
            self._runner.set_data_loader(data)
            results, trained = self._runner.run_tasks(tasks, round_number, client, model, self._device, rate_factor)
            return results, trained, sizes
        except Exception as error:
            raise SimulationError(
                f"client '{client}' in round {round_number}: {type(error).__name__}: {error}"
            ) from error

    def _data_of(self, client: str) -> tuple[DataInterface, Sizes]:
        if client not in self._open:
            data = copy.deepcopy(self._definition.data_loader)
            # When and where a client is opened, and how often, is of no consequence.
            seed_generators(f"{self._runner.seed}:{client}")
            shard = self._open_shard(client)
            data.shard_descriptor = shard
            self._open[client] = data, sizes_of(shard)
            if len(self._open) > OPEN_CLIENTS:
                self._open.popitem(last=False)
        self._open.move_to_end(client)
        return self._open[client]


class RayEnvoys:
    """Ray actors with `VirtualEnvoys` each. The global model is put into Ray's shared memory once a round."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors

    def run_round(
        self, participants: Participants, round_number: int, model: Tensors, rate_factor: float
    ) -> Iterator[Answer]:
        """Yield answers as `Envoys` does.

        Clients of a worker that is lost are run again by the others, with the same bits. Raises SimulationError, naming
        the client, if a task fails or no worker is left.
        """
        import ray

        shared = ray.put(model)
        idle, running = list(self._actors), dict[Any, Any]()
        waiting, answers = deque(participants), deque[tuple[str, list[Task], Any, Any]]()
        while waiting or answers:
            while waiting and idle and len(answers) < ANSWERS_PER_WORKER * len(self._actors):
                client, tasks = waiting.popleft()
                actor = idle.pop()
                answer = actor.run.remote(client, tasks, round_number, shared, rate_factor)
                running[answer] = actor
                answers.append((client, tasks, answer, actor))
            client, tasks, first, actor = answers[0]
            done = ray.wait(list(running), timeout=None if first in running else 0)[0] if running else []
            if done:
                idle += [free for answer in done if (free := running.pop(answer)) in self._actors]
                continue  # they have work before this process has
            answers.popleft()
            try:
                result = ray.get(first)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                self._actors = [other for other in self._actors if other is not actor]
                idle = [other for other in idle if other is not actor]
                if not self._actors:
                    raise SimulationError(
                        f"client '{client}' in round {round_number}: the last worker is lost: {error!r}"
                    ) from error
                # It waits there until a client that runs is done.
                actor = self._actors[0]
                again = actor.run.remote(client, tasks, round_number, shared, rate_factor)
                answers.appendleft((client, tasks, again, actor))
                continue
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", error)
                if not isinstance(cause, SimulationError):
                    cause = _failure(client, round_number, cause)
                raise cause from error
            yield result


@contextmanager
def ray_envoys(workers: int, address: str | None, gpus_per_client: float, *arguments: Any) -> Iterator[RayEnvoys]:
    """Start `workers` actors with `VirtualEnvoys` of the `arguments`; the other parameters are those of `start_ray`."""
    with start_ray(workers, address) as ray:
        actor = ray.remote(num_cpus=1, num_gpus=gpus_per_client)(VirtualEnvoys)
        yield RayEnvoys([actor.remote(*arguments) for _ in range(workers)])


@contextmanager
def start_ray(workers: int, address: str | None) -> Iterator[ModuleType]:
    """Run Ray with `workers` processes on this machine, or on the cluster at `address`, within a block.

    A cluster's token is what RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds.

    Raises SimulationError where Ray is not installed or does not start, where no cluster answers within 30 s, where it
    refuses the token, or has fewer CPUs than `workers`.
    """
    try:
        import ray
    except ImportError:
        raise SimulationError("several workers need Ray: pip install 'openfl-audio[simulation]'") from None
    if address:
        _set_mode(_mode_of_cluster(address))
    # Actors on another machine find the code there; on this one it is found as this process finds it.
    try:
        ray.init(
            # Without any address, Ray would go to a cluster that it happens to find.
            address=address or "local",
            num_cpus=None if address else workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}} if address is None else None,
        )
    except Exception as error:
        raise SimulationError(f"Ray does not start: {error}") from error
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < workers:
            raise SimulationError(
                f"the Ray cluster at {address} has {cpus} CPUs, and each of {workers} workers needs one"
            )
        yield ray
    finally:
        ray.shutdown()


def _mode_of_cluster(address: str) -> str:
    """Return how the cluster authenticates processes, "disabled" or "token": Ray expects its user to know.

    Raises SimulationError, with the reason, unless it lets a process in.
    """
    if (said := _refusal(address, "disabled")) is None:
        return "disabled"
    if "InvalidAuthToken" not in said:
        raise SimulationError(_reason(address, said))
    if (said := _refusal(address, "token")) is None:
        return "token"
    if "InvalidAuthToken" in said:
        there_is = "the one here is another"
    elif "no authentication token was found" in said:
        there_is = "there is none here"
    else:
        raise SimulationError(_reason(address, said))
    raise SimulationError(
        f"the Ray cluster at {address} wants its token, and {there_is}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to "
        "its file, or put it into ~/.ray/auth_token"
    )


def _refusal(address: str, mode: str) -> str | None:
    """Return what Ray says where a process does not get into the cluster, None where it does."""
    command = [sys.executable, "-c", CONNECT, address]
    environment = os.environ | {"RAY_AUTH_MODE": mode, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    try:
        attempt = subprocess.run(command, env=environment, capture_output=True, timeout=CLUSTER_SECONDS)
    except subprocess.TimeoutExpired:
        return "Failed to connect"
    return attempt.stderr.decode(errors="replace").strip() if attempt.returncode else None


def _reason(address: str, said: str) -> str:
    if "Failed to connect" in said:
        return f"no Ray cluster answers at {address}"
    return f"Ray does not start: {said.splitlines()[-1].partition(': ')[2]}"


def _set_mode(mode: str) -> None:
    if os.environ.get("RAY_AUTH_MODE", "disabled") == mode:
        return
    os.environ["RAY_AUTH_MODE"] = mode
    # Otherwise a process that has loaded Ray before, for a search or another run, would stay in its old mode.
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")
