"""Runs of `openfl-audio train` side by side, each in a process and a folder of its own, as one table."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from openfl_audio.errors import SettingsError
from openfl_audio.files import read_json_lines
from openfl_audio.text import read_text

if TYPE_CHECKING:
    from openfl_audio.training.workload import Workload

TRAIN = [sys.executable, "-m", "openfl_audio.cli", "train"]
SPLITS = ("validation", "test")
Results = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """The runs that a workload's comparison.yaml names, each in a folder of its own in `out`.

    `name` is that of the workload on a command line.
    """

    workload: "Workload[Any]"
    name: str
    data: Path
    out: Path

    def rows(self) -> dict[str, list[str]]:
        """Return the arguments of `openfl-audio train` by the name of the run.

        Raises SettingsError if the workload compares nothing.
        """
        path = Path(str(self.workload.package.__file__)).with_name("comparison.yaml")
        if not path.exists():
            raise SettingsError(f"there is no {path}: it should have arguments of train by the name of a run")
        return {run: shlex.split(arguments) for run, arguments in yaml.safe_load(read_text(path)).items()}

    def folder(self, run: str) -> Path:
        """Return the folder of a run."""
        return self.out / re.sub(r"[^\w.]+", "-", run)

    def run(self, rows: Mapping[str, Sequence[str]]) -> Results:
        """Run `rows`, or resume them, and return what their `result.json` hold. Raises CalledProcessError."""
        return {run: train(self.name, arguments, self.data, self.folder(run)) for run, arguments in rows.items()}

    def plot(self, runs: Iterable[str]) -> None:
        """Draw the validation of the runs by round into comparison.png, as the workload does."""
        folders = {run: self.folder(run) for run in runs}
        histories = {run: read_json_lines(folder / "history.jsonl") for run, folder in folders.items()}
        settings = json.loads((next(iter(folders.values())) / "run.json").read_text())["settings"]
        config = self.workload.config_class.model_validate(settings)
        self.workload.plot_comparison(histories, config, self.out / "comparison.png")


def train_arguments(workload: str, arguments: Sequence[str], data: Path, out: Path) -> list[str]:
    """Return the command line of a run, from the workload on."""
    return [workload, *arguments, "--data", str(data), "--out", str(out)]


def train(workload: str, arguments: Sequence[str], data: Path, out: Path) -> dict[str, Any]:
    """Run `openfl-audio train` into `out`, or resume it there, and return what its `result.json` holds.

    Raises CalledProcessError if it fails; what it printed says why.
    """
    print(f"==> {out.name}: {workload} {' '.join(arguments)}", flush=True)
    subprocess.run([*TRAIN, *train_arguments(workload, arguments, data, out)], check=True)
    return json.loads((out / "result.json").read_text())


def results_table(results: Results, models: Sequence[str], metrics: Sequence[str] | None = None) -> str:
    """Return a table in Markdown with a row for each run: its scores, seconds and bytes sent.

    Args:
        results: what `result.json` of each run holds, by the name of the run.
        models: those that are shown, such as "best" and "last", on validation and test as far as the corpus has them.
        metrics: those that are shown; None shows all but the loss.

    Raises SettingsError for a model or a metric that the runs do not have.
    """
    scores = {run: _scores(result["metrics"], models, metrics) for run, result in results.items()}
    columns = list(dict.fromkeys(column for each in scores.values() for column in each))
    rows = []
    for run, result in results.items():
        values = [f"{scores[run][column]:.3f}" if column in scores[run] else "" for column in columns]
        cost = f"{result['seconds']:.0f}", f"{result['bytes']['up'] / 1e6:.0f}"
        rows.append([run, str(result["clients"]), str(result["rounds"]), *values, *cost])
    return markdown(["run", "clients", "rounds", *columns, "seconds", "MB sent"], rows)


def _scores(found: dict[str, Any], models: Sequence[str], metrics: Sequence[str] | None) -> dict[str, float]:
    if unknown := [model for model in models if model not in found]:
        raise SettingsError(f"--models {unknown[0]}: the runs have kept {', '.join(found)}")
    known = [name for name in found[models[0]]["validation"] if name != "loss"]
    if unknown := [name for name in metrics or () if name not in known]:
        raise SettingsError(f"--metrics {unknown[0]}: the runs have {', '.join(known)}")
    return {
        f"{name}, {split}, {model}": found[model][split][name]
        for name in metrics or known
        for model in models
        for split in SPLITS
        if split in found[model]
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown(["run", "seconds"], [["alone", "3"]]))
    | run | seconds |
    | --- | --- |
    | alone | 3 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
