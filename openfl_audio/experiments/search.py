"""A search over settings: each choice of values is a trial, a simulated run; Ray Tune runs them side by side."""

import itertools
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from openfl_audio.config import load_settings
from openfl_audio.errors import SearchError
from openfl_audio.experiments.modes import EVALUATOR, choose_clients
from openfl_audio.experiments.run import claim, run
from openfl_audio.files import read_json_lines
from openfl_audio.protocol.plan import TRAIN, VALIDATE
from openfl_audio.simulation.virtual_clients import start_ray
from openfl_audio.training.history import scores_by_round
from openfl_audio.training.run_settings import RunSettings
from openfl_audio.training.workload import Workload

# Values by dotted key, as `parse_change` gives them.
Choice = dict[str, Any]


def combinations(axes: dict[str, list[Any]], samples: int | None, seed: int) -> list[Choice]:
    """All combinations of the values on `axes`, or `samples` of them at random.

    >>> combinations({"fraction": [0.1, 0.3], "local_epochs": [1, 3]}, None, 0)[1]
    {'fraction': 0.1, 'local_epochs': 3}
    """
    choices = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if samples is None or samples >= len(choices):
        return choices
    return random.Random(seed).sample(choices, samples)


@dataclass(frozen=True)
class Search:
    """A trial for each of `choices`; it leaves in `out/trials/NAME` what `openfl-audio train --mode simulated` leaves.

    `changes` are the same in all trials. Asking for `settings` raises SettingsError for a choice that is wrong.
    """

    workload: Workload[Any]
    config: Path
    changes: Choice
    choices: Sequence[Choice]
    data: Path
    out: Path

    @cached_property
    def settings(self) -> list[RunSettings]:
        """The settings of each trial."""
        kind = self.workload.config_class
        return [load_settings(self.config, kind, self.changes | choice) for choice in self.choices]

    @cached_property
    def best(self) -> tuple[str, str]:
        """The metric that chooses among models and trials, and its direction, "max" or "min"."""
        return self.workload.best(self.settings[0])

    @property
    def names(self) -> list[str]:
        """Return the name of each trial: its values by key."""
        return [",".join(f"{key}={value}" for key, value in choice.items()) for choice in self.choices]

    def run(self, *, early_stopping: bool, workers: int, ray_address: str | None, gpus_per_trial: float) -> None:
        """Run the trials, or go on with them. Each reports the rounds in which its global model is validated.

        With `early_stopping`, ASHA (Li et al., arXiv 1810.05934) ends trials that fall behind the better half.
        Raises SettingsError if `out` is that of another search, SearchError when trials failed, or without Ray Tune.
        """
        try:
            from ray import tune
        except ImportError:
            raise SearchError("a search needs Ray Tune: pip install 'openfl-audio[tune]'") from None
        trials = [settings.model_dump(mode="json") for settings in self.settings]
        choose_clients(self.workload, self.settings[0], self.data, "centralized", ())[0].open(EVALUATOR)
        claim(self.out, {"workspace": self.workload.name, "data": str(self.data), "trials": trials})
        trainable = tune.with_resources(self._run_trial, {"cpu": 1, "gpu": gpus_per_trial})
        # A trial finds its folder by an absolute path, and the code where this process finds it.
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        # Ray's own way to go on with a search forgets what ended trials reported, and in which order they came. Here
        # every trial is run anew: it reports its earlier rounds, and goes on from there.
        shutil.rmtree(self.out / "ray", ignore_errors=True)
        with start_ray(workers, ray_address):
            tuner = tune.Tuner(
                trainable,
                param_space={"trial": tune.grid_search(list(range(len(self.choices))))},
                tune_config=self._tune_config(early_stopping),
                run_config=tune.RunConfig("search", str(self.out / "ray"), verbose=1),
            )
            results = tuner.fit()
        failed = [results[trial] for trial in range(len(results)) if results[trial].error]
        if failed:
            reason = str(failed[0].error).strip().splitlines()[-1]
            raise SearchError(f"{len(failed)} of {len(self.choices)} trials failed; the first: {reason}")

    def write_results(self) -> pd.DataFrame:
        """Write results.csv and the pictures of the trials into `out`, and return `summary`."""
        from openfl_audio.training.plots import plot_curves, plot_heat_map

        trials, metric = self.summary(), self.best[0]
        trials.to_csv(self.out / "results.csv", index=False)
        histories = {name: self.history(trial) for trial, name in enumerate(self.names)}
        plot_curves(histories, metric, self.out / "curves.png")
        axes = list(self.choices[0])
        if len(axes) == 2:
            plot_heat_map(trials, axes[0], axes[1], metric, self.out / "heatmap.png")
        self.workload.plot_search(trials, self.out)
        return trials

    def history(self, trial: int) -> list[dict[str, Any]]:
        """The records of the trial's rounds."""
        return read_json_lines(self._folder(trial) / "history.jsonl")

    def summary(self) -> pd.DataFrame:
        """A row a trial: its values, validation metrics in its best round, test metrics of that model, what it cost.

        A trial that was stopped early has no test metrics.
        """
        return pd.DataFrame([choice | self._summarize(trial) for trial, choice in enumerate(self.choices)])

    def _run_trial(self, config: dict[str, Any]) -> None:
        from ray import tune

        trial, metric = config["trial"], self.best[0]

        def report(record: dict[str, Any]) -> None:
            for number, score in scores_by_round([record], metric).items():
                tune.report({"round": number, metric: score})

        run(self.workload, self.settings[trial], "simulated", self.data, self._folder(trial), on_round=report)

    def _tune_config(self, early_stopping: bool) -> Any:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        metric, mode = self.best
        rounds = max(settings.rounds for settings in self.settings)
        # A report says how many rounds its model was trained for. Whoever reaches `max_t` is stopped, and a trial still
        # tests its model after its last round, which validates only.
        asha = ASHAScheduler("round", max_t=rounds + 1, grace_period=max(1, rounds // 4), reduction_factor=2)
        return tune.TuneConfig(
            metric=metric,
            mode=mode,
            scheduler=asha if early_stopping else None,
            trial_name_creator=lambda trial: self.names[trial.config["trial"]],
        )

    def _folder(self, trial: int) -> Path:
        return self.out / "trials" / self.names[trial].replace("/", "_")

    def _summarize(self, trial: int) -> dict[str, Any]:
        records = self.history(trial)
        metric, direction = self.best
        scores = scores_by_round(records, metric)
        best_round = (max if direction == "max" else min)(scores, key=lambda number: scores[number])
        [best] = [record["metrics"][VALIDATE] for record in records if record["round"] == best_round]
        result = self._folder(trial) / "result.json"
        test = json.loads(result.read_text())["metrics"]["best"]["test"] if result.exists() else {}
        return {
            "rounds": sum(TRAIN in record["metrics"] for record in records),
            "finished": result.exists(),
            **{f"validation {name}": value for name, value in best.items()},
            **{f"test {name}": value for name, value in test.items()},
            "seconds": round(sum(record["seconds"] for record in records), 1),
            "MB sent": round(sum(record["bytes_up"] for record in records) / 1e6, 1),
        }
