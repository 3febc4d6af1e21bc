"""One experiment in all four modes, as one table: metrics, seconds, bytes.

    python scripts/compare_modes.py keyword_spotting --data data/speech_commands --out runs/modes

`workspaces/NAME/comparison.yaml` has a row for each run. Settings are those of `small.yaml`; other arguments go to
`train.py`. A run that was interrupted goes on.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

TRAIN = Path(__file__).with_name("train.py")
WORKSPACES = Path(__file__).resolve().parents[1] / "workspaces"
SPLITS = ("validation", "test")


def read_comparison(workspace: str) -> dict[str, list[str]]:
    """Arguments of `train.py` by the name of the run."""
    rows = yaml.safe_load((WORKSPACES / workspace / "comparison.yaml").read_text(encoding="utf-8"))
    return {name: shlex.split(arguments) for name, arguments in rows.items()}


def train(workspace: str, name: str, arguments: list[str], data: Path, out: Path) -> dict:
    """Raises CalledProcessError if it fails; what it printed says why."""
    folder = out / re.sub(r"[^\w.]+", "-", name)
    print(f"==> {name}: {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(TRAIN), workspace, *arguments, "--data", str(data), "--out", str(folder)]
    subprocess.run(command, check=True)
    return json.loads((folder / "result.json").read_text())


def table(results: dict[str, dict], models: list[str]) -> str:
    """As Markdown: every metric but the loss, of each of `models` ("best", "last") on validation and test."""
    scores = {name: _scores(result["metrics"], models) for name, result in results.items()}
    metrics = list(dict.fromkeys(metric for each in scores.values() for metric in each))
    lines = [_line("run", "clients", "rounds", *metrics, "seconds", "MB sent")]
    lines.append("| --- " * (len(metrics) + 5) + "|")
    for name, result in results.items():
        values = (f"{scores[name][metric]:.3f}" if metric in scores[name] else "" for metric in metrics)
        cost = f"{result['seconds']:.0f}", f"{result['bytes']['up'] / 1e6:.0f}"
        lines.append(_line(name, str(result["clients"]), str(result["rounds"]), *values, *cost))
    return "\n".join(lines)


def _scores(metrics: dict, models: list[str]) -> dict[str, float]:
    names = [name for name in metrics[models[0]]["validation"] if name != "loss"]
    return {
        f"{name}, {split}, {model}": metrics[model][split][name]
        for name in names
        for model in models
        for split in SPLITS
    }


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run one experiment in all four modes.")
    parser.add_argument("workspace", choices=sorted(path.parent.name for path in WORKSPACES.glob("*/comparison.yaml")))
    parser.add_argument("--data", required=True, type=Path, help="the corpus, as for train.py")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--models", nargs="+", choices=("best", "last"), default=["best", "last"])
    options, changes = parser.parse_known_args()
    rows = read_comparison(options.workspace)
    try:
        results = {
            name: train(options.workspace, name, [*arguments, *changes], options.data, options.out)
            for name, arguments in rows.items()
        }
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(table(results, options.models))
    return 0


if __name__ == "__main__":
    sys.exit(main())
