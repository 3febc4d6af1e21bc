"""`openfl-audio export`: the history of an experiment for an experiment tracker."""

from pathlib import Path
from typing import ClassVar, Literal

from openfl_audio.cli.connected import Connected
from openfl_audio.cli.options import argument, option


class Export(Connected):
    """Write the history of an experiment for MLflow or W&B.

    All metrics of its rounds, also those of single envoys, and its settings become a run in a folder. Nothing is sent
    anywhere: `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows it, `wandb sync FOLDER/wandb/*` sends it.
    """

    example: ClassVar[str] = "openfl-audio export my-experiment --to mlflow --out tracked --user ada"

    name: str = argument("name of the experiment")
    to: Literal["mlflow", "wandb"] = option("the tracker", metavar="TRACKER")
    out: Path = option("folder of the run", Path("tracked"), metavar="FOLDER")

    def run(self) -> None:
        from openfl_audio.experiments.trackers import TRACKERS
        from openfl_audio.page.shown import settings

        with self.calls() as calls:
            plan = dict(settings(calls.get_experiment(self.name).plan))
            self.out.mkdir(parents=True, exist_ok=True)
            written = TRACKERS[self.to](self.name, plan, calls.read_history(self.name), self.out.resolve())
        print(f"wrote the history of experiment '{self.name}' into {written}")
