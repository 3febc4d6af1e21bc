"""One experiment in all four modes, as one table and one picture: metrics, seconds, bytes.

    python scripts/compare_modes.py keyword_spotting --data data/speech_commands --out runs/modes

`comparison.yaml` of the workload has a row for each run. Settings are those of `small.yaml`; other arguments go to
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

from openfl_audio.errors import SettingsError
from openfl_audio.experiments.comparison import markdown, train
from openfl_audio.experiments.workloads import find_workload, package_folder
from openfl_audio.files import read_json_lines
from openfl_audio.text import read_text
from openfl_audio.training.workload import Workload

SPLITS = ("validation", "test")


def read_comparison(workload: Workload[Any]) -> dict[str, list[str]]:
    """Arguments of `train.py` by the name of the run. Raises SettingsError if the workload compares nothing."""
    path = package_folder(workload) / "comparison.yaml"
    if not path.exists():
        raise SettingsError(f"there is no {path}: it should have the arguments of train.py by the name of a run")
    rows = yaml.safe_load(read_text(path))
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


def plot(workload: Workload[Any], folders: dict[str, Path], path: Path) -> None:
    """Draw the validation of all runs by round, as the workload does."""
    histories = {name: read_json_lines(folder / "history.jsonl") for name, folder in folders.items()}
    settings = json.loads((next(iter(folders.values())) / "run.json").read_text())["settings"]
    workload.plot_comparison(histories, workload.config_class.model_validate(settings), path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="as for train.py")
    parser.add_argument("--data", required=True, type=Path, help="the corpus, as for train.py")
    parser.add_argument("--out", required=True, type=Path, help="a new folder, or that of a comparison to go on with")
    parser.add_argument("--metrics", nargs="+", help="of all but the loss, these only")
    parser.add_argument("--models", nargs="+", default=["best", "last"], help="such as best-METRIC (best last)")
    options, changes = parser.parse_known_args()
    try:
        workload = find_workload(options.workload)
        rows = read_comparison(workload)
    except SettingsError as error:
        print(f"compare_modes: {error}", file=sys.stderr)
        return 1
    folders = {name: options.out / re.sub(r"[^\w.]+", "-", name) for name in rows}
    try:
        results = {
            name: train(options.workload, [*arguments, *changes], options.data, folders[name])
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
    plot(workload, folders, options.out / "comparison.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
