#!/usr/bin/env python3
"""Word error rates of speech recognition by the size of the cohort, the start, and the server optimizer.

    python benchmarks/cohorts.py --out runs/cohorts --seeds 3 --save cohorts
    python benchmarks/cohorts.py --out runs/cohorts --seeds 3 --finished --save cohorts

The table has the shape of that of Azam et al. 2023 (arXiv 2309.13102) and pfl4asr: in each round so many of 16 clients
train, from a random start or from a seed model that other voices trained, and the server steps by Adam or LAMB; rows
more have other numbers of local epochs. The model is the small W2V-BERT of numbers.yaml. Without --data spoken numbers
are made in OUT: two voices a client, and eight others for the seed model. Rows are runs of `openfl-audio train`, with
all first seeds before the second; a run that was interrupted is resumed. With --finished nothing is run: what has
finished is kept, and each row says of how many seeds it is.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.experiments.comparison import train
from openfl_audio.testing.corpora.librispeech import make_librispeech
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from shard_descriptors.librispeech.preparation import prepare_librispeech

CLIENTS = 16
COHORTS = (4, 8, 16)
SERVERS = {"adam": 0.005, "lamb": 0.01}  # learning rates, which were not searched for
WORKLOAD = "speech_recognition"
SETTINGS = ("--config", "numbers.yaml", "--set", "opt_treatment=RESET")
SEED_ROUNDS = 20


@dataclass(frozen=True)
class Row:
    """A row of the table; `start` is "seed" or "random"."""

    server: str
    start: str
    cohort: int
    local_epochs: int = 3

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.server}-{self.start}-{self.cohort}-{self.local_epochs}"

    def arguments(self, rounds: int, clients: int, seed_model: Path) -> list[str]:
        """Return the arguments of `openfl-audio train`."""
        changes = {
            "local_epochs": self.local_epochs,
            "validate_every": rounds,
            "aggregation.server_optimizer.optimizer": self.server,
            "aggregation.server_optimizer.learning_rate": SERVERS[self.server],
        }
        options = ["--rounds", str(rounds), "--clients", str(clients), "--fraction", str(self.cohort / clients)]
        start = ["--init", str(seed_model)] if self.start == "seed" else []
        return [
            *("--mode", "simulated", *SETTINGS, *options, *start),
            *(word for change in changes.items() for word in ("--set", "=".join(map(str, change)))),
        ]


ROWS = [
    *(Row(server, start, cohort) for start in ("seed", "random") for server in SERVERS for cohort in COHORTS),
    *(Row("lamb", "seed", 8, local_epochs) for local_epochs in (1, 6)),
]


def make_data(out: Path) -> tuple[Path, Path]:
    """Make spoken numbers for the clients and for the seed model in `out`, unless they are there."""
    made = []
    for name, speakers, clients, seed in (("numbers", 2 * CLIENTS, CLIENTS, 0), ("seed_numbers", CLIENTS // 2, 1, 1)):
        make_librispeech(out / name, n_train_speakers=speakers, n_utterances=12, numbers=True, seed=seed)
        made.append(out / f"{name}_clients")
        prepare_librispeech(out / name, made[-1], clients)
    return made[0], made[1]


def run(data: Path, seed_data: Path, out: Path, rounds: int, seeds: int) -> None:
    """Run all rows, or resume them. Raises CalledProcessError."""
    clients = LibriSpeechShardDescriptor.natural_clients(data)
    for seed in range(seeds):
        more = ["--seed", str(seed)]
        alone = ["--mode", "centralized", *SETTINGS, "--rounds", str(SEED_ROUNDS), *more]
        train(WORKLOAD, alone, seed_data, folder(out, "seed-model", seed))
        for row in ROWS:
            arguments = row.arguments(rounds, clients, folder(out, "seed-model", seed))
            train(WORKLOAD, [*arguments, *more], data, folder(out, row.name, seed))


def folder(out: Path, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return out / "runs" / f"{name}-seed-{seed}"


def finished(out: Path, seeds: int) -> dict[str, Any]:
    """Return the word error rates on test speakers of the last models of all runs that have finished."""

    def rates(name: str) -> list[float]:
        paths = [folder(out, name, seed) / "result.json" for seed in range(seeds)]
        results = [json.loads(path.read_text()) for path in paths if path.exists()]
        return [round(each["metrics"]["last"]["test"]["wer"], 4) for each in results]

    rows = [asdict(row) | {"wer": rates(row.name)} for row in ROWS]
    return {"seed_model": rates("seed-model"), "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a LibriSpeech with transcripts that was prepared for clients")
    parser.add_argument("--seed-data", type=Path, help="one of other speakers, for the seed model; with --data")
    parser.add_argument("--out", type=Path, default=Path("runs/cohorts"), help="%(default)s")
    parser.add_argument("--rounds", type=whole_number, default=16, help="%(default)s")
    parser.add_argument("--seeds", type=whole_number, default=3, help="runs of each row; %(default)s")
    parser.add_argument("--finished", action="store_true", help="run nothing, and keep what has finished")
    add_save(parser)
    options = parser.parse_args(arguments)
    if (options.data is None) != (options.seed_data is None):
        parser.error("--data and --seed-data are given together: the seed model is of other speakers")
    out = options.out.resolve()
    if not options.finished:
        given = options.data is not None
        data, seed_data = (options.data, options.seed_data) if given else make_data(out)
        try:
            run(data, seed_data, out, options.rounds, options.seeds)
        except subprocess.CalledProcessError as error:
            return error.returncode  # the run has said why
    values = {"rounds": options.rounds, "seeds": options.seeds} | finished(out, options.seeds)
    print(json.dumps(values, indent=2))
    save(options, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
