"""`openfl-audio tune`: a search over settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from openfl_audio.cli.options import Command, argument, changes_option, option
from openfl_audio.cli.train import CONFIG, WORKLOAD, settings_of_workload, use_one_thread
from openfl_audio.config import parse_change
from openfl_audio.errors import SettingsError

if TYPE_CHECKING:
    from openfl_audio.experiments.search import Search


class Tune(Command):
    """Search over settings of a workload in simulation.

    Each choice is a run. The choices are a grid of values, or some of it at random. OUT gets results.csv, curves.png,
    heatmap.png (of two axes) and the run of each trial. Needs Ray Tune: pip install 'openfl-audio[tune]'.
    """

    example: ClassVar[str] = (
        "openfl-audio tune sound_events --data data/fsd50k_store --out runs/grid --workers 4 \\\n"
        "      --over fraction=0.1,0.3,0.5,0.7 --over local_epochs=1,3,5"
    )
    resumes: ClassVar[bool] = True
    reads_settings: ClassVar[bool] = True

    workload: str = argument(WORKLOAD)
    data: Path = option("the corpus that the workload's shard reads")
    out: Path = option("a new folder, or that of a search to resume")
    over: list[str] = option("an axis of the grid, such as fraction=0.1,0.3", metavar="KEY=V1,V2,...", nargs=1)
    config: str = option(CONFIG, "small.yaml", "-c", "FILE")
    set_: list[str] = changes_option("rounds=20")
    samples: int | None = option("points of the grid, drawn at random, in place of all", None, ge=1)
    seed: int = option("seed of the drawn points", 0)
    early_stopping: bool = option("end trials that fall behind (ASHA)", False)
    workers: int = option("trials that run side by side", 1, ge=1)
    ray_address: str | None = option("address of a Ray cluster", None, metavar="ADDRESS")
    gpus_per_trial: float = option("such as 0.25", 0.0, ge=0)

    @classmethod
    def settings_class(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        return settings_of_workload(given)

    def run(self) -> None:
        use_one_thread()
        search = self.search()
        search.run(
            early_stopping=self.early_stopping,
            workers=self.workers,
            ray_address=self.ray_address,
            gpus_per_trial=self.gpus_per_trial,
        )
        print(search.write_results().to_string(index=False))
        print(f"{self.out} has results.csv, trials/ and plots")

    def search(self) -> "Search":
        """Return the search. Raises SettingsError for a key that is unknown, wrong, or given twice."""
        from openfl_audio.experiments.search import Search, combinations
        from openfl_audio.experiments.workloads import find_file, find_workload

        axes, changes = dict(map(parse_axis, self.over)), dict(map(parse_change, self.set_))
        twice = [key for key in axes if key in changes]
        if twice or len(axes) < len(self.over):
            raise SettingsError(f"{', '.join(twice) or 'a key'} is given twice: in one --over, or in --set")
        workload = find_workload(self.workload)
        return Search(
            workload,
            find_file(workload, self.config),
            changes,
            combinations(axes, self.samples, self.seed),
            self.data.resolve(),
            self.out.resolve(),
        )


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """Return key and values of "key=value,value,...", whose values are YAML. Raises SettingsError.

    >>> parse_axis("fraction=0.1,0.3")
    ('fraction', [0.1, 0.3])
    """
    key, _, values = text.partition("=")
    pairs = [parse_change(f"{key}={value}") for value in values.split(",") if value.strip()]
    if not pairs:
        raise SettingsError(f"{text!r} should be key=value,value,..., such as fraction=0.1,0.3")
    return pairs[0][0], [value for _, value in pairs]
