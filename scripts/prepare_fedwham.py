"""Writes FedWHAM, on which FedEnhance trains a model before the federation: WHAM's first speakers with their noise.

    python scripts/prepare_fedwham.py --wham wham/wav16k/max --out data/fedwham

--wham is what WHAM's own scripts make of WSJ0 and its noise recordings (scripts/download.py wham-noise; WSJ0 is
LDC93S6A), with tr, cv and tt. For cv or tt that are not there, speakers of tr are held out. Files are copied as they
are. A run that was stopped goes on when it is started again; report.json in --out names what was left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is no installed package

from scripts.preparation import run_preparation
from shard_descriptors.librifsd50k.preparation import prepare_fedwham
from shard_descriptors.librifsd50k.store import REPORT, summarize


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wham", type=Path, required=True, metavar="DIR", help="WHAM's folder wav16k/max")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="which speakers are held out (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="pairs copied at a time (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)

    def prepare() -> list[str]:
        report = prepare_fedwham(options.wham, options.out, options.seed, options.workers)
        return [*summarize(report), f"See {options.out / REPORT}"]

    return run_preparation(prepare)


if __name__ == "__main__":
    sys.exit(main())
