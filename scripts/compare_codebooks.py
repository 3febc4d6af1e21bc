"""What HuBERT learns with each kind of codebook, and what its features are worth downstream, as one table.

    python scripts/compare_codebooks.py --data data/librispeech_clients --keywords data/speech_commands \\
        --out runs/codebooks

For each codebook (of each client, federated, central): targets, a simulated pretraining with `small.yaml`, and keyword
spotting on the frozen features with `upstream.yaml`, which random weights and log-mel are put through as well. Other
arguments go to the pretraining. What was interrupted goes on.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# `python scripts/compare_codebooks.py` has scripts/ in its path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openfl_audio.experiments.comparison import markdown, train
from scripts.arguments import whole_number

HEAD = (
    "codebook",
    "masked accuracy, validation",
    "most frequent cluster",
    "keyword accuracy, validation",
    "keyword accuracy, test",
)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="from scripts/prepare_librispeech.py")
    parser.add_argument("--keywords", required=True, type=Path, help="a Speech Commands corpus")
    parser.add_argument(
        "--out", required=True, type=lambda path: Path(path).resolve(), help="a new folder, or one to go on with"
    )
    parser.add_argument("--clusters", type=whole_number, default=100, help="of each codebook (%(default)s)")
    parser.add_argument(
        "--seeds", type=whole_number, default=3, help="runs of keyword spotting, whose mean is told (%(default)s)"
    )
    return parser.parse_known_args()


def pretrain(codebook: str, options: argparse.Namespace, changes: Sequence[str]) -> dict[str, float]:
    """Validation metrics of the best model in `out`/CODEBOOK. Raises CorpusError, CalledProcessError."""
    from workspaces.hubert_codebooks.features import Mfcc
    from workspaces.hubert_codebooks.targets import make_targets

    name = f"{codebook}-mfcc39-{options.clusters}"
    make_targets(options.data, codebook, options.clusters, Mfcc(39), name)
    targets = ("--set", f"data.targets={name}", "--set", f"model.clusters={options.clusters}")
    result = train("hubert", ["--mode", "simulated", *targets, *changes], options.data, options.out / codebook)
    return result["metrics"]["best"]["validation"]


def spot_keywords(name: str, upstream: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Accuracy on validation and on test clips of the best models on top of `upstream`, as cells of the table."""
    arguments = ("--mode", "simulated", "--config", "upstream.yaml", *upstream)
    runs = [
        train(
            "keyword_spotting",
            [*arguments, "--seed", str(seed)],
            options.keywords,
            options.out / "keywords" / f"{name}-{seed}",
        )
        for seed in range(options.seeds)
    ]
    return [spread([run["metrics"]["best"][split]["accuracy"] for run in runs]) for split in ("validation", "test")]


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several.

    >>> spread([0.5, 0.25, 0.75]), spread([0.5])
    ('0.500 ± 0.250', '0.500')
    """
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


def compare(options: argparse.Namespace, changes: Sequence[str]) -> str:
    from workspaces.hubert_codebooks.targets import CODEBOOKS

    rows: list[list[Any]] = []
    for codebook in CODEBOOKS:
        metrics = pretrain(codebook, options, changes)
        accuracies = (f"{metrics[name]:.3f}" for name in ("masked_accuracy", "most_frequent_accuracy"))
        upstream = ("--set", f"model.upstream={options.out / codebook / 'model'}")
        rows.append([codebook, *accuracies, *spot_keywords(codebook, upstream, options)])
    config = options.out / CODEBOOKS[0] / "model" / "config.json"
    random_weights = ("--set", "model.upstream=null", "--set", f"model.config={config}")
    rows.append(["none: random weights", "", "", *spot_keywords("random", random_weights, options)])
    rows.append(["none: log-mel", "", "", *spot_keywords("log_mel", (), options)])
    return markdown(HEAD, rows)


def main() -> int:
    options, changes = parse_arguments()
    from shard_descriptors.common.errors import CorpusError

    try:
        print(compare(options, changes))
    except CorpusError as error:
        print(f"compare_codebooks: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print(f"compare_codebooks: interrupted; the same command goes on with {options.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
