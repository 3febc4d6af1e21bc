#!/usr/bin/env python3
"""Scores of a workload in all modes, over seeds: the tables of the workloads' pages.

    python benchmarks/modes.py hubert --data data/librispeech_clients --out runs/hubert_modes --seeds 3

The runs are those of `openfl-audio compare` with the same options, and are resumed as there. With --finished nothing is
run: what has finished in --out is kept, and a row says by its number of seeds how much of it that is.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save
from openfl_audio.cli.compare import Compare
from openfl_audio.cli.main import parse
from openfl_audio.experiments.comparison import shown_scores

MODEL = "best"


def finished(command: Compare) -> dict[str, Any]:
    """Return for each run its clients and rounds, and its scores by column, of as many seeds as have finished."""
    comparison, rows, _ = command.plan()
    found: dict[str, Any] = {}
    for run in rows:
        paths = [comparison.folder(run, number) / "result.json" for number in range(command.seeds)]
        results = [json.loads(path.read_text()) for path in paths if path.exists()]
        each = [shown_scores(result, [MODEL], command.metrics or None) for result in results]
        found[run] = {
            "clients": results[0]["clients"] if results else None,
            "rounds": results[0]["rounds"] if results else None,
            "seeds": len(results),
            "scores": {column: [round(one[column], 4) for one in each] for column in (each[0] if each else ())},
        }
    return found


def create_parser() -> argparse.ArgumentParser:
    """Return the options of this benchmark; all others are those of `openfl-audio compare`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--finished", action="store_true", help="run nothing, and keep what has finished")
    add_save(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    options, others = create_parser().parse_known_args(arguments)
    command = cast(Compare, parse(["compare", *others, "--models", MODEL])[0])
    if not options.finished and (status := command.run()):
        return status
    values = {"workload": command.workload, "runs": finished(command)}
    print(json.dumps(values, indent=2))
    save(options, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
