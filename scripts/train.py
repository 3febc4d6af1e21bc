"""Run one experiment in any of four modes, with the same model, tasks and data.

    python scripts/train.py keyword_spotting --mode simulated --data data/speech_commands --out runs/simulated
        --config small.yaml --clients 40 --fraction 0.25

centralized: one client has everything; individual: clients train alone, without exchange; simulated: many clients in
this process (or with --workers on Ray); federated: a director and envoys, as processes on this machine, with TLS.
A run that was interrupted or killed goes on when it is started again with the same arguments.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# `python scripts/train.py` has scripts/ in its path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.arguments import whole_number

if TYPE_CHECKING:
    from openfl_audio.training.run_settings import RunSettings
    from openfl_audio.training.workload import Workload

# Flags that are settings.
SETTINGS = ("rounds", "clients", "fraction", "local_epochs", "seed", "init")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="the name of an installed one, or the folder of a package with a workload.py")
    parser.add_argument("--mode", required=True, choices=("centralized", "individual", "simulated", "federated"))
    parser.add_argument("--data", required=True, type=Path, help="the corpus: what the workload's shard reads")
    parser.add_argument("--out", required=True, type=Path, help="a new folder, or that of a run to go on with")
    parser.add_argument("--config", default="small.yaml", help="in the workload's configs/, or a path (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as batch_size=8")
    parser.add_argument("--rounds", type=int, help="this and the next are settings: by default what --config says")
    parser.add_argument("--clients", help="a number, or natural: those of the corpus")
    parser.add_argument("--fraction", type=float, help="of the clients that train in a round")
    parser.add_argument("--local-epochs", type=float, help="how often a client sees its data in a round")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--init", help="the folder of an earlier run: start from its best model")
    parser.add_argument(
        "--client-ids", type=int, nargs="+", default=[0], help="individual: who trains; -1 is the last (0)"
    )
    parser.add_argument(
        "--workers", type=whole_number, default=1, help="simulated: processes that run clients, on Ray (%(default)s)"
    )
    parser.add_argument("--ray-address", help="simulated: of a Ray cluster")
    parser.add_argument("--gpus-per-client", type=float, default=0.0, help="simulated: such as 0.25")
    return parser.parse_args()


def settings_of(workload: "Workload", arguments: argparse.Namespace) -> "RunSettings":
    """Raises SettingsError for a key that is unknown, wrong, or given in two ways."""
    from openfl_audio.errors import SettingsError
    from openfl_audio.experiments.workloads import find_file
    from openfl_audio.training.run_settings import load_run_settings, parse_change

    changes = dict(map(parse_change, arguments.set))
    for key in SETTINGS:
        value = getattr(arguments, key)
        if value is None:
            continue
        if key in changes:
            raise SettingsError(f"--set {key}={changes[key]} and --{key.replace('_', '-')} {value}: give one of them")
        changes[key] = int(value) if key == "clients" and value.isdecimal() else value
    return load_run_settings(workload.config_class, find_file(workload, arguments.config), changes)


def main() -> int:
    arguments = parse_arguments()
    # A terminated run must stop the processes that it started, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("train: terminated"))
    # Sums depend on how many threads share them, and many small clients are better run side by side (--workers).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from openfl_audio.experiments.run import EXPECTED_ERRORS, run
    from openfl_audio.experiments.workloads import find_workload

    options = ("client_ids", "workers", "ray_address", "gpus_per_client")
    try:
        workload = find_workload(arguments.workload)
        result = run(
            workload,
            settings_of(workload, arguments),
            arguments.mode,
            arguments.data,
            arguments.out,
            **{name: getattr(arguments, name) for name in options},
        )
    except EXPECTED_ERRORS as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"train: interrupted; the same command goes on with {arguments.out}", file=sys.stderr)
        return 130
    for name, metrics in result.get("metrics", {}).items():
        for split, values in metrics.items():
            print(f"{name} model, {split}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))
    print(f"{arguments.out} has result.json, history.jsonl, model/ and plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
