"""Writes LibriFSD50K: each LibriSpeech utterance with a sound of FSD50K that is no speech, in chunks of 4 s at 16 kHz.

    python scripts/prepare_librifsd50k.py --librispeech data/LibriSpeech --fsd50k data/FSD50K --out data/librifsd50k

Train speakers come from train-clean-100 and train-clean-360, validation from dev-clean, test from test-clean. Part of
them, and of FSD50K, is enough: what lacks is held out from train, and report.json in --out says so, as it names every
file that was left out. A run that was stopped goes on when it is started again. Complete, LibriFSD50K takes about
13 GB.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is no installed package

from scripts.preparation import run_preparation
from shard_descriptors.librifsd50k.preparation import prepare_librifsd50k
from shard_descriptors.librifsd50k.store import REPORT, summarize

CLIPS_PER_UTTERANCE = "clips that each utterance goes with, for few recordings; as published, one while there are clips"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--librispeech", type=Path, required=True, metavar="DIR", help="the folder LibriSpeech")
    parser.add_argument("--fsd50k", type=Path, required=True, metavar="DIR", help="has FSD50K.dev_audio and so on")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="which clip goes with which utterance (%(default)s)")
    parser.add_argument("--clips-per-utterance", type=int, metavar="N", help=CLIPS_PER_UTTERANCE)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="pairs written at a time (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)

    def prepare() -> list[str]:
        report = prepare_librifsd50k(
            options.librispeech, options.fsd50k, options.out, options.seed, options.workers, options.clips_per_utterance
        )
        return [*summarize(report), f"See {options.out / REPORT}"]

    return run_preparation(prepare)


if __name__ == "__main__":
    sys.exit(main())
