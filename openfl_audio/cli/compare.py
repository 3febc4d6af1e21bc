"""`openfl-audio compare` and `openfl-audio compare-codebooks`: runs side by side, as a table."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from openfl_audio.cli.main import parse
from openfl_audio.cli.options import Command, argument, option
from openfl_audio.cli.train import WORKLOAD, Train

if TYPE_CHECKING:
    from openfl_audio.experiments.comparison import Comparison
    from openfl_audio.training.run_settings import RunSettings

Value = TypeVar("Value")


class Compare(Command):
    """Compare runs of a workload in a table and a picture.

    The workload's comparison.yaml has the runs, in all four modes. Where it compares centralized with federated, a row
    more has centralized with as many steps as a client of federated takes. Further options are those of openfl-audio
    train, for all runs, such as --rounds 5 or --config FILE. The table has metrics, seconds and bytes sent, and the
    mean of the tenth of the clients that are worst off; OUT/comparison.png has validation by round.
    """

    example: ClassVar[str] = (
        "openfl-audio compare keyword_spotting --data data/speech_commands --out runs/modes --rounds 5"
    )
    resumes: ClassVar[bool] = True
    passes_on: ClassVar[bool] = True

    workload: str = argument(WORKLOAD)
    data: Path = option("the corpus that the workload's shard reads")
    out: Path = option("a new folder, or that of a comparison to resume")
    metrics: list[str] = option("metrics that are shown; all but the loss by default", [], metavar="METRIC")
    seeds: int = option("runs of each row, with a seed of its own: mean, deviation and interval are shown", 1, ge=1)
    models: list[str] = option("models that are shown, such as best-METRIC", ["best", "last"], metavar="MODEL")

    def run(self) -> int:
        from openfl_audio.experiments.comparison import results_table

        comparison, rows, seeds = self.plan()

        def compare() -> None:
            print(results_table(comparison.run(rows, seeds), self.models, self.metrics or None))
            comparison.plot(rows)

        return status_of_runs(compare)

    def plan(self) -> "tuple[Comparison, dict[str, list[str]], dict[str, int]]":
        """Return the comparison, and by the name of each run its arguments of openfl-audio train and its first seed.

        Ends the process with a sentence if openfl-audio train does not take them.
        """
        from openfl_audio.experiments.comparison import Comparison
        from openfl_audio.experiments.workloads import find_workload

        comparison = Comparison(find_workload(self.workload), self.workload, self.data, self.out, self.seeds)
        rows = {run: [*arguments, *self.passed_on] for run, arguments in comparison.rows().items()}
        settings = {run: self._settings(comparison, run, arguments) for run, arguments in rows.items()}
        rows, settings = _with_equal_steps(comparison, rows, settings)
        return comparison, rows, {run: each.seed for run, each in settings.items()}

    def _settings(self, comparison: "Comparison", run: str, arguments: list[str]) -> "RunSettings":
        """Return the settings of a run. Ends the process with a sentence if openfl-audio train does not take them."""
        from openfl_audio.config import load_settings
        from openfl_audio.experiments.comparison import train_arguments
        from openfl_audio.experiments.workloads import find_file

        train = check_train(train_arguments(self.workload, arguments, self.data, comparison.folder(run)))
        workload = comparison.workload
        return load_settings(find_file(workload, train.config), workload.config_class, train.changes())


def _with_equal_steps(
    comparison: "Comparison", rows: dict[str, list[str]], settings: "dict[str, RunSettings]"
) -> "tuple[dict[str, list[str]], dict[str, RunSettings]]":
    """Add the row of centralized with as many steps as federated, where both are compared."""
    from openfl_audio.experiments.comparison import EQUAL_STEPS, equal_steps

    if not {"centralized", "federated"} <= rows.keys() or EQUAL_STEPS in rows:
        return rows, settings
    alone, together = settings["centralized"], settings["federated"]
    clients = together.clients
    if clients == "natural":
        clients = comparison.workload.natural_clients(together, comparison.data)
    rounds = equal_steps(together.rounds, clients, together.local_epochs, alone.local_epochs)
    added = {EQUAL_STEPS: [*rows["centralized"], "--rounds", str(rounds)]}
    return _after_centralized(rows, added), _after_centralized(settings, {EQUAL_STEPS: alone})


def _after_centralized(rows: dict[str, Value], added: dict[str, Value]) -> dict[str, Value]:
    names = list(rows)
    place = names.index("centralized") + 1
    return {name: rows[name] for name in names[:place]} | added | {name: rows[name] for name in names[place:]}


class CompareCodebooks(Command):
    """Compare codebooks that a HuBERT is pretrained with.

    For each codebook (of each client, federated, central): targets, a simulated pretraining with small.yaml, and
    keyword spotting on the frozen features with upstream.yaml, which random weights and log-mel are put through as
    well. Further options are those of openfl-audio train, for the pretraining.
    """

    example: ClassVar[str] = (
        "openfl-audio compare-codebooks --data data/librispeech_clients --out runs/codebooks \\\n"
        "      --keywords data/speech_commands"
    )
    resumes: ClassVar[bool] = True
    passes_on: ClassVar[bool] = True

    data: Path = option("what openfl-audio data prepare librispeech wrote")
    keywords: Path = option("a Speech Commands corpus")
    out: Path = option("a new folder, or that of a comparison to resume")
    clusters: int = option("clusters of each codebook", 100, ge=1)
    seeds: int = option("runs of keyword spotting, whose mean is told", 3, ge=1)

    def run(self) -> int:
        from openfl_audio.experiments.codebooks import compare_codebooks
        from openfl_audio.experiments.comparison import train_arguments

        check_train(train_arguments("hubert", ["--mode", "simulated", *self.passed_on], self.data, self.out))

        def compare() -> None:
            # Each run finds the model of another one by its absolute path.
            out = self.out.resolve()
            print(compare_codebooks(self.data, self.keywords, out, self.clusters, self.seeds, self.passed_on))

        return status_of_runs(compare)


def check_train(arguments: list[str]) -> Train:
    """Return openfl-audio train with `arguments`; ends the process with a sentence if it does not take them."""
    command, _ = parse(["train", *arguments])
    return cast(Train, command)


def status_of_runs(compare: Callable[[], None]) -> int:
    """Call `compare`, and return the exit status of the run that failed, which has said why."""
    try:
        compare()
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0
