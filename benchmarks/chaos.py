#!/usr/bin/env python3
"""Break a running federation at random for some minutes, and see whether its result is that of an undisturbed one.

    python benchmarks/chaos.py --minutes 10 --seed 0
    python benchmarks/chaos.py --minutes 10 --secure      # five envoys, with secure aggregation

A director, three envoys that dial it through a proxy of their own, and a notebook process run one experiment with TLS.
Meanwhile envoys, director and notebook are killed with -9, and connections are cut, stalled or reset in the middle of
an upload or a download. Rounds have no deadline, so every envoy is waited for: afterwards each round must be there once
and with every envoy, and the same number of rounds without any fault must give the same weights, bit for bit.
With `--secure` a round may go on without an envoy that is lost in the middle of it: each round must have the sum of at
least as many as the threshold, and a simulation that loses the same envoys in the same rounds must give the same
weights. Exit code 0 if so. The counts are also in OUT/result.json.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

import torch

from benchmarks.arguments import REPOSITORY, add_save, save
from benchmarks.rounds_peers import shard, workloads
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.files import write_json
from openfl_audio.notebook.interactive_api import DirectorError, Federation, FLExperiment, ModelInterface, TaskInterface
from openfl_audio.privacy.transcript import Stage
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.secure_aggregation import SecureAggregation, threshold
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.testing.fault_proxy import Fault, Proxy

USER = "scientist"
# Name and number of items, which is the weight of the envoy's update.
ENVOYS = {"envoy_1": 1, "envoy_2": 2, "envoy_3": 5}
SECURE_ENVOYS = ENVOYS | {"envoy_4": 4, "envoy_5": 3}
SECURE = SecureAggregation(value_range=0.5, largest_weight=5, stage_seconds=20)
READY_SECONDS = 120
# A fault must be overcome within this time: a stalled connection is noticed after 15 s, a worker starts in some 10 s.
RECOVERY_SECONDS = 180
MOST_ROUNDS = 1_000_000
WATCH = """
import sys
from openfl_audio.notebook.interactive_api import Federation, FLExperiment
port, certificates, user = int(sys.argv[1]), sys.argv[2], sys.argv[3]
files = [f"{certificates}/{name}" for name in ("ca.crt", f"{user}.crt", f"{user}.key")]
FLExperiment(Federation(user, "127.0.0.1", port, True, *files)).attach("chaos").watch()
"""


class ChaosError(RuntimeError):
    """The federation did not get over a fault, or its result is wrong."""


def train(model, items, device, optimizer, round_number, seconds):
    """Steps that depend on round and envoy, so that an update that is lost or counted twice shows in the weights."""
    generator = torch.Generator().manual_seed(1000 * round_number + len(items))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) + 0.1 * parameter.detach()
        optimizer.step()
    time.sleep(seconds)
    return {"loss": 0.0}


class DisturbedFederation:
    """Director, envoys behind proxies, and a notebook that watches."""

    def __init__(self, folder: Path, envoys: Mapping[str, int], generator: random.Random) -> None:
        self.folder = folder
        self.envoys = envoys
        self.generator = generator
        self.faults: Counter[str] = Counter()
        self.certificates = folder / "certificates"
        write_certificates(self.certificates, director_hosts=["127.0.0.1"], envoys=list(envoys), users=[USER])

    def __enter__(self) -> "DisturbedFederation":
        with ExitStack() as stack:
            self.processes = stack.enter_context(LocalFederation(self.folder, self.certificates, USER))
            self.proxies = {name: stack.enter_context(Proxy(self.processes.port)) for name in self.envoys}
            self.processes.start_director()
            for name in self.envoys:
                self.start_envoy(name)
            self.processes.wait_until_ready(self.envoys, READY_SECONDS)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_envoy(self, name: str) -> None:
        """Start the envoy `name`, which dials the director through its own proxy."""
        descriptor = {"template": shard.TEMPLATE, "params": {"n_items": self.envoys[name]}}
        self.processes.start_envoy(name, descriptor, director_port=self.proxies[name].port)

    def start_notebook(self) -> None:
        """Start a process that watches the experiment, as a notebook does."""
        command = [sys.executable, "-c", WATCH, str(self.processes.port), str(self.certificates), USER]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        self.processes.run("notebook", command, cwd=self.folder, env=environment)

    def break_something(self) -> str:
        """Break a process or a connection at random, and return what it was; it is counted in `faults`."""
        faults: list[Callable[[], str]] = [
            self._kill_envoy, self._kill_director, self._kill_notebook, self._break_connection, self._break_connection
        ]  # fmt: skip
        what = self.generator.choice(faults)()
        self.faults[what] += 1
        return what

    def _kill_envoy(self) -> str:
        name = self.generator.choice(list(self.envoys))
        self._kill(name)
        time.sleep(self.generator.uniform(0, 3))
        self.start_envoy(name)
        return "envoy killed"

    def _kill_director(self) -> str:
        self._kill("director")
        time.sleep(self.generator.uniform(0, 3))
        self.processes.start_director()
        return "director killed"

    def _kill_notebook(self) -> str:
        self._kill("notebook")
        self.start_notebook()
        return "notebook killed"

    def _break_connection(self) -> str:
        kinds: list[Literal["cut", "stall", "reset"]] = ["cut", "stall", "reset"]
        kind = self.generator.choice(kinds)
        after = self.generator.randrange(10_000, 20_000_000)
        fault = Fault(kind, self.generator.choice(["up", "down"]), after)
        proxy = self.proxies[self.generator.choice(list(self.envoys))]
        proxy.arm(fault)
        if not proxy.broken.wait(RECOVERY_SECONDS):
            raise ChaosError(f"no connection to break: {fault}")
        return {"cut": "connection cut", "stall": "connection stalled", "reset": "connection reset"}[kind]

    def _kill(self, name: str) -> None:
        os.kill(self.processes.pid(name), signal.SIGKILL)
        self.processes.wait_for_exit(name, READY_SECONDS)


def arguments(envoys: Mapping[str, int], rounds: int, seconds: float, is_secure: bool) -> dict[str, Any]:
    """Return the experiment of `rounds` rounds in which a client trains for `seconds`, as arguments of `start`."""
    tasks = TaskInterface()
    tasks.add_kwargs(seconds=seconds)(train)
    names = {"model": "model", "data_loader": "items", "device": "device", "optimizer": "optimizer"}
    tasks.register_fl_task(**names, round_num="round_number")(train)
    return {
        "model_provider": ModelInterface(
            partial(workloads.create_model, "head"), partial(torch.optim.SGD, lr=0.01, momentum=0.9)
        ),
        "task_keeper": tasks,
        "data_loader": workloads.FewItemsData(),
        "rounds_to_train": rounds,
        "envoys": list(envoys),
        "secure_aggregation": SECURE if is_secure else None,
    }


def start_experiment(processes: LocalFederation, given: dict[str, Any]) -> FLExperiment:
    """Start the experiment of `arguments`, and return it."""
    files = {"cert_chain": "ca.crt", "api_cert": f"{USER}.crt", "api_private_key": f"{USER}.key"}
    paths = {key: str(processes.folder / "certificates" / file) for key, file in files.items()}
    experiment = FLExperiment(Federation(USER, "127.0.0.1", processes.port, tls=True, **paths), "chaos")
    experiment.start(**given)
    return experiment


def rounds_done(experiment: FLExperiment) -> list[dict]:
    """The history, from whichever director is there; empty while there is none."""
    try:
        return list(experiment.federation.dir_client.read_history("chaos"))
    except DirectorError:
        return []


def wait_for_rounds(experiment: FLExperiment, number: int) -> None:
    """Raises ChaosError if the federation does not get there."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while len(rounds_done(experiment)) < number:
        if time.monotonic() > deadline:
            raise ChaosError(f"no round was completed for {RECOVERY_SECONDS} s")
        time.sleep(0.1)


def disturb(
    folder: Path, envoys: Mapping[str, int], is_secure: bool, minutes: float, generator: random.Random
) -> tuple[Counter, list[dict], dict]:
    """Faults by kind, the history and the final weights of a federation that is broken for `minutes`."""
    with DisturbedFederation(folder, envoys, generator) as federation:
        experiment = start_experiment(federation.processes, arguments(envoys, MOST_ROUNDS, 0.3, is_secure))
        federation.start_notebook()
        wait_for_rounds(experiment, 2)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            done = len(rounds_done(experiment))
            what = federation.break_something()
            wait_for_rounds(experiment, done + 2)
            say(f"{what}; {len(rounds_done(experiment))} rounds so far, {max(0, end - time.monotonic()):.0f} s to go")
            time.sleep(generator.uniform(0, 2))
        experiment.stop()
        return federation.faults, rounds_done(experiment), experiment.last_model().state_dict()


def run_undisturbed(folder: Path, rounds: int) -> dict:
    """Final weights of `rounds` rounds to which nothing happens."""
    with DisturbedFederation(folder, ENVOYS, random.Random(0)) as federation:
        experiment = start_experiment(federation.processes, arguments(ENVOYS, rounds, 0.0, is_secure=False))
        for _ in experiment.federation.dir_client.stream_history("chaos"):
            continue
        return experiment.last_model().state_dict()


def simulate_secure(folder: Path, history: list[dict]) -> dict:
    """Final weights of a simulation whose rounds sum the updates of the same envoys as those of `history`."""

    def open_shard(name: str) -> shard.FewItemsShardDescriptor:
        return shard.FewItemsShardDescriptor(SECURE_ENVOYS[name])

    simulation = Simulation(list(SECURE_ENVOYS), open_shard, folder)
    simulation.start("chaos", **arguments(SECURE_ENVOYS, len(history), 0.0, is_secure=True))
    for record in history:
        for name in {*SECURE_ENVOYS} - participants(record):
            simulation.lose(name, record["round"], Stage.UPDATE)
    for _ in simulation.run():
        continue
    return simulation.last_model().state_dict()


def participants(record: dict) -> set[str]:
    """Return the envoys whose updates are in the sum of a secure round."""
    return {*record["secure"]["envoys"]} if record["secure"] else set()


def compare(history: list[dict], is_secure: bool, disturbed: dict, undisturbed: dict) -> dict:
    """Return the rounds that were lost or repeated in `history`, and how far the weights of both runs lie apart."""
    if is_secure:
        complete = [record["round"] for record in history if len(participants(record)) >= threshold(len(SECURE_ENVOYS))]
    else:
        complete = [record["round"] for record in history if list(record["envoys"]) == sorted(ENVOYS)]
    differences = [float((disturbed[name] - undisturbed[name]).abs().max()) for name in disturbed]
    return {
        "rounds_completed": len(history),
        **(
            {"rounds_that_lost_an_envoy": sum(participants(r) < {*SECURE_ENVOYS} for r in history)} if is_secure else {}
        ),
        "rounds_lost": len(set(range(len(history))) - set(complete)),
        "rounds_repeated": len(complete) - len(set(complete)),
        "largest_difference_of_final_weights": max(differences),
    }


def say(sentence: str) -> None:
    """Print a sentence of progress at once."""
    print(f"==> {sentence}", flush=True)


def main() -> int:
    """Run the command, and return its exit status: 0 if no round was lost and the weights are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (%(default)s)")
    parser.add_argument("--secure", action="store_true", help="five envoys, with secure aggregation")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "chaos")
    add_save(parser)
    options = parser.parse_args()
    out = options.out.resolve() / time.strftime("%Y%m%d-%H%M%S")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The nodes import the envoys' shards from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("chaos: terminated"))
    try:
        faults, history, disturbed = disturb(
            out / "disturbed",
            SECURE_ENVOYS if options.secure else ENVOYS,
            options.secure,
            options.minutes,
            random.Random(options.seed),
        )
        say(f"{len(history)} rounds without any fault, for comparison")
        if options.secure:
            undisturbed = simulate_secure(out / "undisturbed", history)
        else:
            undisturbed = run_undisturbed(out / "undisturbed", len(history))
        result = compare(history, options.secure, disturbed, undisturbed)
    except (ChaosError, subprocess.TimeoutExpired) as error:
        print(f"chaos: {error}; logs are in {out}", file=sys.stderr)
        return 1
    result = {"seed": options.seed, "faults": dict(sorted(faults.items())), **result}
    write_json(out / "result.json", result)
    save(options, result)
    print(json.dumps(result, indent=2))
    wrong = ("rounds_lost", "rounds_repeated", "largest_difference_of_final_weights")
    return int(any(result[key] for key in wrong))


if __name__ == "__main__":
    sys.exit(main())
