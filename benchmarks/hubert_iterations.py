#!/usr/bin/env python3
"""HuBERT's two iterations: pretraining on clusters of MFCC, and anew on clusters of a layer of the first model.

    python benchmarks/hubert_iterations.py --data data/librispeech_clients --keywords data/speech_commands

Both have a federated codebook, and a simulated run of `hubert` with small.yaml from a random start. What each is worth
is the accuracy of SUPERB's head for keyword spotting on its frozen features. Masked accuracies are of different tasks,
as the clusters differ. What was interrupted is resumed in --out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.experiments.codebooks import MFCC, frozen, pretrain, spot_keywords
from workspaces.hubert_codebooks.features import HiddenStates

CODEBOOK = "federated"


def measure(
    data: Path, keywords: Path, out: Path, layer: int, clusters: int, seeds: int, changes: Sequence[str]
) -> dict[str, Any]:
    """Return for each iteration its masked accuracy, that of the most frequent cluster, and keyword accuracies."""
    values: dict[str, Any] = {"layer": layer, "clusters": clusters}
    for iteration in ("first", "second"):
        run = out / iteration
        features = MFCC if iteration == "first" else HiddenStates(out / "first", layer)
        metrics = pretrain(CODEBOOK, data, run, clusters, changes, features)
        accuracies = spot_keywords(keywords, out / "keywords", iteration, frozen(run), seeds)
        values[iteration] = {
            "features": features.name,
            "masked_accuracy": round(metrics["masked_accuracy"], 4),
            "most_frequent_cluster": round(metrics["most_frequent_accuracy"], 4),
            "keyword_accuracy": {split: [round(each, 4) for each in found] for split, found in accuracies.items()},
        }
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a LibriSpeech that was prepared for clients")
    parser.add_argument("--keywords", type=Path, required=True, help="a Speech Commands corpus")
    parser.add_argument("--out", type=Path, default=Path("runs/hubert_iterations"), help="%(default)s")
    parser.add_argument("--layer", type=whole_number, default=2, help="of the first model's Transformer; %(default)s")
    parser.add_argument("--clusters", type=whole_number, default=100, help="%(default)s")
    parser.add_argument("--seeds", type=whole_number, default=3, help="of keyword spotting; %(default)s")
    parser.add_argument("--rounds", type=whole_number, help="of pretraining; as many as small.yaml says by default")
    add_save(parser)
    options = parser.parse_args(arguments)
    changes = [] if options.rounds is None else ["--rounds", str(options.rounds)]
    out = options.out.resolve()
    values = measure(options.data, options.keywords, out, options.layer, options.clusters, options.seeds, changes)
    print(json.dumps(values, indent=2))
    save(options, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
