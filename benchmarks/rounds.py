#!/usr/bin/env python3
"""Cost of a round when training costs nothing: seconds, bytes and memory of a federation on this machine.

    python benchmarks/rounds.py --workload head                     # this project, a table
    python benchmarks/rounds.py --workload many --engine stock      # OpenFL 1.7.1 as it comes
    python benchmarks/rounds.py --workload base --peer flower       # Flower, in an environment of its own
    python benchmarks/rounds.py --workload base --peer nvflare      # NVIDIA FLARE, in one, too
    python benchmarks/rounds.py --workload base --tls --json        # one JSON object on standard output
    python benchmarks/rounds.py --workload base --floor             # beside bare gRPC and bare sockets
    python benchmarks/rounds.py --workload base --sandbox off       # without the sandbox, for what it costs
    python benchmarks/rounds.py --workload base --envoys 3 --secure # plain, then with secure aggregation

Director and envoys are real processes. Each envoy adds 1e-3 to every weight in its train task, nothing is validated,
and the run fails unless the final model has grown by as much. The first round is left out of the seconds per round:
engines start up in it. `submit_to_first_round` has the whole of it, from the call that submits until the first round's
weights are aggregated. Bytes are those of one envoy in one round (null where an engine does not tell), memory is the
peak of the resident set: in stock OpenFL the envoy is its own worker, in Flower the superlink with its serverapp counts
as director, the supernode as envoy and the clientapp as worker, in NVIDIA FLARE the server with its process for the job
as director, a client's parent process as envoy and its process for the job as worker.

`--secure` measures a plain run and a secure one, both with TLS, and says how many times the plain run's seconds, bytes
and memory the secure one takes; `cipher_gb_per_s` is what masks are made at, in one thread. The mean of changes of a
secure round is off by less than its quantisation, which is below the tolerance of the check here.

`--floor` then moves as many bytes to and from as many clients without a federation, through files, without TLS: see
`benchmarks/rounds_peers/floor.py`. `times_floor` is how many times as long a round of ours took, by the medians.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from benchmarks.rounds_peers import floor
from benchmarks.rounds_peers.measure import REPOSITORY, BenchmarkError, Job, Measured, summarise
from benchmarks.rounds_peers.workloads import MODELS, WrongResultError, create_model
from openfl_audio.errors import StartError
from openfl_audio.privacy import masks
from openfl_audio.protocol.secure_aggregation import LEAST_UPDATES

ROUNDS = {"many": 10, "head": 10, "base": 5, "adam": 4}
# Stock OpenFL sleeps for 10 s here and there, and takes 100 s for a round of the many small layers.
ROUNDS_OF_STOCK = {"many": 3, "head": 6, "base": 3}


def benchmark(engine: str, job: Job) -> dict:
    """Run the workload and return what is reported of it. Raises BenchmarkError."""
    module = importlib.import_module(f"benchmarks.rounds_peers.{engine}")
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        try:
            measured = module.measure(job, Path(folder))
        except (BenchmarkError, StartError, WrongResultError) as error:
            raise BenchmarkError(f"{error}\n{ends_of_logs(Path(folder))}") from error
    return report(engine, job, measured)


def add_floors(result: dict) -> None:
    """Add what moving the bytes of `result` costs by itself, on the machine as it is now."""
    result |= {"floor": {}, "times_floor": {}}
    for line in floor.LINES:
        with tempfile.TemporaryDirectory(prefix="floor-") as folder:
            seconds = floor.measure(line, result["bytes_up"], result["envoys"], result["rounds"], Path(folder))
        result["floor"][line] = summarise(seconds)
        result["times_floor"][line] = round(result["seconds_per_round"]["median"] / statistics.median(seconds), 2)


def compare_secure(job: Job) -> dict:
    """Return a plain and a secure run of the job, and what the secure one costs. Raises BenchmarkError."""
    plain, secure = (benchmark("ours", replace(job, tls=True, secure=is_secure)) for is_secure in (False, True))

    def flat(run: dict) -> dict[str, float]:
        seconds = {"seconds": run["seconds_per_round"]["median"]}
        return seconds | {"bytes_up": run["bytes_up"], "bytes_down": run["bytes_down"]} | run["rss_mb"]

    costs, before = flat(secure), flat(plain)
    return {
        "plain": plain,
        "secure": secure,
        "times_plain": {name: round(cost / before[name], 3) for name, cost in costs.items()},
        "cipher_gb_per_s": round(cipher_rate(), 2),
    }


def cipher_rate() -> float:
    """Return how many GB of a mask one thread makes in a second: the median of some tries."""
    rates = []
    for number in range(9):
        began = time.perf_counter()
        for chunk in range(200):
            masks.words(bytes(32), "<u4", (200 * number + chunk) * masks.CHUNK_WORDS, masks.CHUNK_WORDS)
        rates.append(200 * 4 * masks.CHUNK_WORDS / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates)


def report(engine: str, job: Job, measured: Measured) -> dict:
    """Return what was measured as one JSON object, with the job and the size of its model."""
    trained = [parameter.numel() for parameter in create_model(job.workload).parameters()]
    return {
        "engine": engine,
        "workload": job.workload,
        "envoys": job.envoys,
        "tls": job.tls,
        "float16": job.float16,
        "sandbox": job.sandbox if engine == "ours" else None,
        "secure": job.secure,
        "rounds": job.rounds,
        "parameters": sum(trained),
        "tensors": len(trained),
        "seconds_per_round": measured.seconds_per_round(),
        "submit_to_first_round": round(measured.submit_to_first_round, 3),
        "first_round": {name: round(value, 3) for name, value in measured.first_round.items()},
        "bytes_up": measured.bytes_up,
        "bytes_down": measured.bytes_down,
        "rss_mb": measured.rss_mb,
    }


def ends_of_logs(folder: Path) -> str:
    """Return the last lines of all logs, whose folder is about to be removed."""
    logs = sorted(path for path in folder.rglob("*.log") if path.stat().st_size)
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)


def show(result: dict) -> None:
    """The same as a table."""
    for name, value in result.items():
        print(f"{name:<22}{in_words(value)}")


def in_words(value: Any) -> str:
    """Return a value as text, an object as its keys and values in a line."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {in_words(each)}" for key, each in value.items())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line, or of `arguments`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(MODELS), required=True)
    parser.add_argument("--envoys", type=whole_number, default=2, metavar="N", help="%(default)s by default")
    parser.add_argument("--rounds", type=int, metavar="R", help="two at least, as the first is not counted")
    parser.add_argument("--tls", action="store_true", help="mutual TLS")
    parser.add_argument("--float16", action="store_true", help="weights travel as float16")
    parser.add_argument(
        "--sandbox", choices=("require", "use", "off"), default="use", help="of our workers (%(default)s)"
    )
    parser.add_argument("--floor", action="store_true", help="what moving the bytes costs by itself, too")
    parser.add_argument("--secure", action="store_true", help="a plain and a secure run, with TLS")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--engine", choices=("ours", "stock"), default="ours")
    what.add_argument("--peer", choices=("flower", "nvflare"), help="another framework")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_save(parser)
    options = parser.parse_args(arguments)
    if options.envoys < 1 or (options.rounds is not None and options.rounds < 2):
        parser.error("at least one envoy and two rounds are needed")
    if options.floor and (options.peer or options.engine != "ours"):
        parser.error("--floor is for this project's engine, whose bytes are known")
    if options.secure and (
        engine_of(options) != "ours" or options.float16 or options.floor or options.workload == "adam"
    ):
        parser.error("--secure is for this project's engine, without --float16, --floor and an optimizer's state")
    if options.secure and options.envoys < LEAST_UPDATES:
        parser.error(f"--secure takes {LEAST_UPDATES} envoys at least, and not {options.envoys}")
    return options


def engine_of(options: argparse.Namespace) -> str:
    """Return the engine that the options name."""
    return options.peer or options.engine


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    options = parse_arguments(arguments)
    engine = engine_of(options)
    rounds = options.rounds or (ROUNDS | (ROUNDS_OF_STOCK if engine == "stock" else {}))[options.workload]
    job = Job(options.workload, options.envoys, rounds, options.tls, options.float16, options.sandbox)
    # A terminated benchmark must stop what it started, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks/rounds.py: terminated"))
    # The nodes import the workload's package from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    # All share one machine: threads beyond the cores would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        # OpenFL logs to standard output, which is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            result = compare_secure(job) if options.secure else benchmark(engine, job)
            if options.floor:
                add_floors(result)
    except BenchmarkError as error:
        print(f"benchmarks/rounds.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks/rounds.py: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    save(options, result)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
