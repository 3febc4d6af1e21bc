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

import numpy as np
import scipy.stats
import yaml

from openfl_audio.errors import SettingsError
from openfl_audio.files import read_claim, read_json_lines
from openfl_audio.text import read_text
from openfl_audio.training.history import Record

if TYPE_CHECKING:
    from openfl_audio.training.workload import Workload

TRAIN = [sys.executable, "-m", "openfl_audio.cli", "train"]
SPLITS = ("validation", "test")
# What `result.json` holds, by the name of the run: of one run for each seed.
Results = Mapping[str, Sequence[dict[str, Any]]]
CONFIDENCE = 0.95
EQUAL_STEPS = "centralized, equal steps"


@dataclass(frozen=True)
class Comparison:
    """The runs that a workload's comparison.yaml names, each in a folder of its own in `out`.

    `name` is that of the workload on a command line.
    """

    workload: "Workload[Any]"
    name: str
    data: Path
    out: Path
    seeds: int = 1

    def rows(self) -> dict[str, list[str]]:
        """Return the arguments of `openfl-audio train` by the name of the run.

        Raises SettingsError if the workload compares nothing.
        """
        path = Path(str(self.workload.package.__file__)).with_name("comparison.yaml")
        if not path.exists():
            raise SettingsError(f"there is no {path}: it should have arguments of train by the name of a run")
        return {run: shlex.split(arguments) for run, arguments in yaml.safe_load(read_text(path)).items()}

    def folder(self, run: str, number: int = 0) -> Path:
        """Return the folder of a run with the seed `number`, counted from the first one, whose folder has no number."""
        return self.out / (re.sub(r"[^\w.]+", "-", run) + (f"-seed-{number}" if number else ""))

    def run(self, rows: Mapping[str, Sequence[str]], first_seeds: Mapping[str, int]) -> Results:
        """Run `rows` with all seeds, or resume them, and return what their `result.json` hold.

        All rows have their first seed before one has its second. Raises CalledProcessError.
        """
        results: dict[str, list[dict[str, Any]]] = {run: [] for run in rows}
        for number in range(self.seeds):
            for run, arguments in rows.items():
                seed = ["--seed", str(first_seeds[run] + number)] if number else []
                results[run].append(train(self.name, [*arguments, *seed], self.data, self.folder(run, number)))
        return results

    def plot(self, runs: Iterable[str]) -> None:
        """Draw the validation of the runs by round into comparison.png, as the workload does: means over seeds."""
        histories = {
            run: mean_history([read_json_lines(self.folder(run, i) / "history.jsonl") for i in range(self.seeds)])
            for run in runs
        }
        settings = read_claim(self.folder(next(iter(histories))) / "run.json")["settings"]
        config = self.workload.config_class.model_validate(settings)
        self.workload.plot_comparison(histories, config, self.out / "comparison.png")


def equal_steps(rounds: int, clients: int, local_epochs: float, epochs_of_all: float) -> int:
    """Return in how many rounds one client with all data takes as many steps as one of `clients` in `rounds`.

    A client has 1 / `clients` of the data, and takes `local_epochs` over it in a round; the one that has all data takes
    `epochs_of_all`.

    >>> equal_steps(12, 4, 4, 4), equal_steps(80, 3, 1, 1), equal_steps(2, 40, 1, 1)
    (3, 27, 1)
    """
    return max(1, round(rounds * local_epochs / (clients * epochs_of_all)))


def mean_history(histories: Sequence[Sequence[Record]]) -> list[Record]:
    """Return the records of the first of several runs, with means over them for the metrics that all have in a round.

    One run stays as it is.
    """
    if len(histories) == 1:
        return list(histories[0])
    by_round = [{record["round"]: record for record in records} for records in histories]
    common = [number for number in by_round[0] if all(number in each for each in by_round)]
    return [by_round[0][n] | {"metrics": _mean_metrics([each[n]["metrics"] for each in by_round])} for n in common]


def _mean_metrics(metrics: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        task: {
            name: float(np.mean([each[task][name] for each in metrics]))
            for name in values
            if all(name in each.get(task, {}) for each in metrics)
        }
        for task, values in metrics[0].items()
    }


def spread(values: Sequence[float]) -> str:
    """Return the mean of `values`; of several also their standard deviation, and the interval of the mean.

    It is Student's, with 95 % confidence: mean -+ t * deviation / sqrt(n).

    >>> spread([0.5, 0.25, 0.75]), spread([0.5])
    ('0.500 ± 0.250 (-0.121 to 1.121)', '0.500')
    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.3f}"
    deviation = float(np.std(values, ddof=1))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return f"{mean:.3f} ± {deviation:.3f} ({mean - half:.3f} to {mean + half:.3f})"


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
    """Return a table in Markdown with a row for each run: its scores, seconds and bytes sent, and a line below.

    A score is that of one seed, or the mean over several, with deviation and interval. Seconds and bytes are means.

    Args:
        results: what `result.json` of each run holds, of one or several seeds, by the name of the run.
        models: those that are shown, such as "best" and "last", on validation and test as far as the corpus has them.
        metrics: those that are shown; None shows all but the loss.

    Raises SettingsError for a model or a metric that the runs do not have.
    """
    scores = {run: [shown_scores(each, models, metrics) for each in seeds] for run, seeds in results.items()}
    columns = list(dict.fromkeys(column for seeds in scores.values() for each in seeds for column in each))
    rows = []
    for run, seeds in results.items():
        found = [[each[column] for each in scores[run] if column in each] for column in columns]
        cost = (np.mean([each["seconds"] for each in seeds]), np.mean([each["bytes"]["up"] / 1e6 for each in seeds]))
        values = [spread(values) if values else "" for values in found]
        rows.append([run, str(seeds[0]["clients"]), str(seeds[0]["rounds"]), *values, *(f"{x:.0f}" for x in cost)])
    return markdown(["run", "clients", "rounds", *columns, "seconds", "MB sent"], rows) + f"\n\n{_legend(results)}"


def _legend(results: Results) -> str:
    number = max(map(len, results.values()))
    if number == 1:
        return "One seed each."
    return f"{number} seeds: mean ± standard deviation (95 % interval of the mean, Student's t)."


def shown_scores(result: dict[str, Any], models: Sequence[str], metrics: Sequence[str] | None) -> dict[str, float]:
    """Return the scores of a run by the column of `results_table`, which has the same arguments and errors."""
    found = result["metrics"]
    if unknown := [model for model in models if model not in found]:
        raise SettingsError(f"--models {unknown[0]}: the runs have kept {', '.join(found)}")
    known = [name for name in found[models[0]]["validation"] if name != "loss"]
    if unknown := [name for name in metrics or () if name not in known]:
        raise SettingsError(f"--metrics {unknown[0]}: the runs have {', '.join(known)}")
    scores = {
        f"{name}, {split}, {model}": found[model][split][name]
        for name in metrics or known
        for model in models
        for split in SPLITS
        if split in found[model]
    }
    # Only the best model has them, which is the one that clients are scored with.
    worst = {
        f"{name}, worst 10 % of clients": summary["worst_tenth"]
        for name, summary in result.get("per_client", {}).items()
        if "best" in models and name in (metrics or known)
    }
    return scores | worst


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown(["run", "seconds"], [["alone", "3"]]))
    | run | seconds |
    | --- | --- |
    | alone | 3 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
