"""`openfl-audio compare` and `openfl-audio compare-codebooks`: runs side by side, as a table."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from openfl_audio.cli.main import parse
from openfl_audio.cli.options import Command, argument, option
from openfl_audio.cli.train import WORKLOAD


class Compare(Command):
    """Compare runs of a workload in one table and one picture.

    The workload's comparison.yaml has the runs, in all four modes. Further options are those of openfl-audio train, for
    all runs, such as --rounds 5 or --config FILE. The table has metrics, seconds and bytes sent; OUT/comparison.png has
    validation by round.
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
    models: list[str] = option("models that are shown, such as best-METRIC", ["best", "last"], metavar="MODEL")

    def run(self) -> int:
        from openfl_audio.experiments.comparison import Comparison, results_table, train_arguments
        from openfl_audio.experiments.workloads import find_workload

        comparison = Comparison(find_workload(self.workload), self.workload, self.data, self.out)
        rows = {run: [*arguments, *self.passed_on] for run, arguments in comparison.rows().items()}
        for run, arguments in rows.items():
            check_train(train_arguments(self.workload, arguments, self.data, comparison.folder(run)))

        def compare() -> None:
            print(results_table(comparison.run(rows), self.models, self.metrics or None))
            comparison.plot(rows)

        return status_of_runs(compare)


class CompareCodebooks(Command):
    """Compare the codebooks that a HuBERT is pretrained with.

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


def check_train(arguments: list[str]) -> None:
    """End the process with a sentence, before anything runs, if openfl-audio train does not take `arguments`."""
    parse(["train", *arguments])


def status_of_runs(compare: Callable[[], None]) -> int:
    """Call `compare`, and return the exit status of the run that failed, which has said why."""
    try:
        compare()
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0
