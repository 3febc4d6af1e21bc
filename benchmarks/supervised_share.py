#!/usr/bin/env python3
"""SI-SDR improvement of speech enhancement by the share of supervised clients, for several numbers of clients.

    python benchmarks/supervised_share.py --data data/librifsd50k --out runs/shares --save supervised-share

The runs are the trials of a search, `openfl-audio tune` over `p_supervised` and `clients` with small.yaml: in each
round all clients train, so that a trial takes as many steps as another, and what differs is how much of them has clean
speech, and among how many clients the recordings are split. Scores in dB are those of the best model of a trial, on
speakers that no client has. What was interrupted is resumed in --out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.cli.main import parse
from openfl_audio.cli.tune import Tune
from workspaces.speech_enhancement.plots import LABELS

SHARES = (0.0, 0.5, 1.0)
CLIENTS = (4, 8, 24)


def search(data: Path, out: Path, rounds: int, workers: int) -> Tune:
    """Return the command that runs the trials, or goes on with them."""
    axes = {"p_supervised": SHARES, "clients": CLIENTS}
    over = [
        word for key, values in axes.items() for word in ("--over", f"{key}={','.join(f'{each:g}' for each in values)}")
    ]
    where = ["--data", str(data), "--out", str(out), "--workers", str(workers)]
    return cast(Tune, parse(["tune", "speech_enhancement", *where, *over, "--set", f"rounds={rounds}"])[0])


def values_of(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Return share, clients and scores by number of noises of each trial; `trials` as results.csv has them."""
    return [
        {
            "p_supervised": float(trial["p_supervised"]),
            "clients": int(trial["clients"]),
            **{metric: round(float(trial[f"test {metric}"]), 2) for metric in LABELS},
        }
        for _, trial in trials.iterrows()
    ]


def draw(values: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the scores over the share: a picture for each number of noises, a line for each number of clients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(1, len(LABELS), figsize=(8, 3.5), sharey=True, layout="constrained")
    for axes, (metric, label) in zip(grid, LABELS.items(), strict=True):
        for clients, line in pd.DataFrame(values).groupby("clients"):
            axes.plot(100 * line["p_supervised"], line[metric], marker="o", label=f"{clients} clients")
        axes.set(title=label, xlabel="supervised clients (%)")
        axes.grid(alpha=0.3)
    grid[0].set(ylabel="SI-SDR improvement (dB)")
    grid[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a LibriFSD50K that was prepared")
    parser.add_argument("--out", type=Path, default=Path("runs/shares"), help="%(default)s")
    parser.add_argument("--rounds", type=whole_number, default=40, help="%(default)s")
    parser.add_argument("--workers", type=whole_number, default=1, help="trials that run side by side; %(default)s")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the scores, as PNG or SVG")
    add_save(parser)
    options = parser.parse_args(arguments)
    search(options.data, options.out, options.rounds, options.workers).run()
    trials = values_of(pd.read_csv(options.out / "results.csv"))
    if options.figure:
        draw(trials, options.figure)
    print(json.dumps(trials, indent=2))
    save(options, {"rounds": options.rounds, "trials": trials})
    return 0


if __name__ == "__main__":
    sys.exit(main())
