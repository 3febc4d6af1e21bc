#!/usr/bin/env python3
"""Make HuBERT's targets: k-means on the frames of a prepared LibriSpeech, and the cluster of every frame.

    python scripts/make_hubert_targets.py --data data/librispeech_8 --codebook federated --clusters 504
    python scripts/make_hubert_targets.py --data data/librispeech_8 --codebook federated --clusters 500 \\
        --features runs/hubert --layer 6 --share 0.1

The first line clusters MFCC, the second, after a first pretraining, a layer of its model. `client` gives every client a
codebook of its own, `federated` one to all by k-means over the federation, and `central` one from all frames in one
place. Targets are in DATA/targets/NAME, which a shard descriptor and `scripts/train.py hubert` take by its name. A run
that was stopped goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is no installed package

from openfl_audio.errors import SettingsError
from shard_descriptors.common.errors import AudioError, CorpusError
from workspaces.hubert_codebooks.features import FeatureError, Features, HiddenStates, Mfcc
from workspaces.hubert_codebooks.targets import CODEBOOKS, make_targets, summarize


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="from scripts/prepare_librispeech.py")
    parser.add_argument("--codebook", choices=CODEBOOKS, required=True, help="who shares one")
    parser.add_argument("--clusters", type=int, default=504, metavar="K", help="(%(default)s)")
    parser.add_argument("--mfcc", type=int, choices=(39, 13), default=39, help="with differences or without (39)")
    parser.add_argument("--features", type=Path, metavar="RUN", help="a run of pretraining, instead of MFCC")
    parser.add_argument("--layer", type=int, metavar="L", help="of its Transformer, from 1")
    parser.add_argument("--share", type=float, default=1.0, help="of the train clips to fit on (%(default)s)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of the federated codebook (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--name", help="of the targets (CODEBOOK-FEATURE-K)")
    parser.add_argument("--device", default="cpu", help="where the model of --features runs (%(default)s)")
    options = parser.parse_args(arguments)
    if (options.features is None) != (options.layer is None):
        parser.error("--features and --layer go together: a run, and a layer of its model")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        features: Features = Mfcc(options.mfcc)
        if options.features is not None:
            features = HiddenStates(options.features, options.layer, options.device)
        info = make_targets(
            options.data,
            options.codebook,
            options.clusters,
            features,
            options.name,
            options.share,
            options.seed,
            options.rounds,
        )
    except (AudioError, CorpusError, FeatureError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    print("\n".join(summarize(info)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
