"""One experiment in all four modes, as one table and one picture: metrics, seconds, bytes.

    python scripts/compare_modes.py keyword_spotting --data data/speech_commands --out runs/modes

`workspaces/NAME/comparison.yaml` has a row for each run. Settings are those of `small.yaml`; other arguments go to
`train.py`. A run that was interrupted goes on. comparison.png in `--out` has validation by round.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

# `python scripts/compare_modes.py` has scripts/ in its path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openfl_audio.experiments.comparison import markdown, train
from openfl_audio.text import read_text

WORKSPACES = Path(__file__).resolve().parents[1] / "workspaces"
SPLITS = ("validation", "test")


def read_comparison(workspace: str) -> dict[str, list[str]]:
    """Arguments of `train.py` by the name of the run."""
    rows = yaml.safe_load(read_text(WORKSPACES / workspace / "comparison.yaml"))
    return {name: shlex.split(arguments) for name, arguments in rows.items()}


def table(results: dict[str, dict[str, Any]], models: list[str], metrics: list[str] | None = None) -> str:
    """As Markdown: `metrics`, or all but the loss, of each of `models` ("best", "last", ...), on validation and test as
    far as the corpus has them. Raises ValueError for a model or a metric that the runs do not have."""
    scores = {name: _scores(result["metrics"], models, metrics) for name, result in results.items()}
    columns = list(dict.fromkeys(column for each in scores.values() for column in each))
    rows = []
    for name, result in results.items():
        values = [f"{scores[name][column]:.3f}" if column in scores[name] else "" for column in columns]
        cost = f"{result['seconds']:.0f}", f"{result['bytes']['up'] / 1e6:.0f}"
        rows.append([name, str(result["clients"]), str(result["rounds"]), *values, *cost])
    return markdown(["run", "clients", "rounds", *columns, "seconds", "MB sent"], rows)


def _scores(found: dict[str, Any], models: list[str], metrics: list[str] | None) -> dict[str, float]:
    if unknown := [model for model in models if model not in found]:
        raise ValueError(f"--models {unknown[0]}: the runs have kept {', '.join(found)}")
    known = [name for name in found[models[0]]["validation"] if name != "loss"]
    if unknown := [name for name in metrics or () if name not in known]:
        raise ValueError(f"--metrics {unknown[0]}: the runs have {', '.join(known)}")
    return {
        f"{name}, {split}, {model}": found[model][split][name]
        for name in metrics or known
        for model in models
        for split in SPLITS
        if split in found[model]
    }


def plot(workspace: str, folders: dict[str, Path], path: Path) -> None:
    """Validation of all runs by round: as the workspace draws it, or the metric that chooses its best model."""
    from openfl_audio.experiments.modes import workspace_experiment
    from openfl_audio.experiments.plots import plot_curves
    from openfl_audio.files import read_json_lines

    experiment = workspace_experiment(workspace)
    histories = {name: read_json_lines(folder / "history.jsonl") for name, folder in folders.items()}
    if hasattr(experiment, "plot_comparison"):
        experiment.plot_comparison(histories, path)
        return
    settings = json.loads((next(iter(folders.values())) / "run.json").read_text())["settings"]
    metric, _ = experiment.arguments(experiment.Settings.model_validate(settings))["best"]
    plot_curves(histories, metric, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", choices=sorted(path.parent.name for path in WORKSPACES.glob("*/comparison.yaml")))
    parser.add_argument("--data", required=True, type=Path, help="the corpus, as for train.py")
    parser.add_argument("--out", required=True, type=Path, help="a new folder, or that of a comparison to go on with")
    parser.add_argument("--metrics", nargs="+", help="of all but the loss, these only")
    parser.add_argument("--models", nargs="+", default=["best", "last"], help="such as best-METRIC (best last)")
    options, changes = parser.parse_known_args()
    rows = read_comparison(options.workspace)
    folders = {name: options.out / re.sub(r"[^\w.]+", "-", name) for name in rows}
    try:
        results = {
            name: train(options.workspace, [*arguments, *changes], options.data, folders[name])
            for name, arguments in rows.items()
        }
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print(f"compare_modes: interrupted; the same command goes on with {options.out}", file=sys.stderr)
        return 130
    try:
        print(table(results, options.models, options.metrics))
    except ValueError as error:
        print(f"compare_modes: {error}", file=sys.stderr)
        return 1
    plot(options.workspace, folders, options.out / "comparison.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
