#!/usr/bin/env python3
"""Prepare LibriSpeech for N clients: lists of the train and validation clips of each, and of dev-clean and test-clean.

    python scripts/prepare_librispeech.py --data data/LibriSpeech --out data/librispeech_8 --clients 8 --workers 8

The train subsets that are there (without any: the largest subset) are used together, by speaker or, with
`--partition iid`, regardless of the speaker.
The audio stays where it is; the lists, with durations and transcripts, are OUT/clips.csv. Every file is decoded once,
and what cannot be used is named, here and in OUT/librispeech.json. A run that was stopped goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is no installed package

from scripts.preparation import run_preparation
from shard_descriptors.librispeech.preparation import PARTITIONS, prepare_librispeech, summarize


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder LibriSpeech")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--clients", type=int, required=True, metavar="N", help="how many clients share it")
    parser.add_argument("--partition", choices=PARTITIONS, default="speaker", help="who gets what (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the division (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="files decoded at a time (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return run_preparation(
        lambda: summarize(
            prepare_librispeech(
                options.data, options.out, options.clients, options.partition, options.seed, options.workers
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main())
