"""`openfl-audio train`: one experiment in any of four modes."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from openfl_audio.cli.options import Command, add_fields, argument, changes_option, option
from openfl_audio.config import load_settings, parse_change
from openfl_audio.errors import SettingsError

# Options that are settings of a run: --rounds 5 is --set rounds=5, and its help is that of the setting.
SETTINGS = ("rounds", "clients", "fraction", "local_epochs", "seed", "init")
WORKLOAD = "name of an installed one, or a folder with a workload.py"
CONFIG = "settings: a file in the workload's configs/, or a path"


class Train(Command):
    """Train the model of a workload in one of four modes.

    centralized: one client has all of the data; individual: clients train alone, without exchange;
    simulated: many clients in this process, or with --workers on Ray; federated: a director and envoys,
    as processes on this machine, with TLS. The same command resumes a run that was interrupted or killed.
    """

    example: ClassVar[str] = (
        "openfl-audio train keyword_spotting --mode simulated --data data/speech_commands \\\n"
        "      --out runs/simulated --clients 30 --fraction 0.25 --set batch_size=8"
    )
    resumes: ClassVar[bool] = True
    reads_settings: ClassVar[bool] = True

    workload: str = argument(WORKLOAD)
    mode: Literal["centralized", "individual", "simulated", "federated"] = option("who the clients are")
    data: Path = option("the corpus that the workload's shard reads")
    out: Path = option("a new folder, or that of a run to resume")
    config: str = option(CONFIG, "small.yaml", "-c", "FILE")
    set_: list[str] = changes_option("optimizer.learning_rate=0.01")
    rounds: int | None = option(default=None)
    clients: Annotated[int | str | None, Field(union_mode="left_to_right")] = option(default=None)
    fraction: float | None = option(default=None)
    local_epochs: float | None = option(default=None)
    seed: int | None = option(default=None)
    init: str | None = option(default=None, metavar="PATH")
    preprocess: bool = option("only fill the cache of encoder outputs with the clips of all clients, and end", False)
    client_ids: list[int] = option("individual: numbers of the clients that train; -1 is the last", [0], metavar="N")
    workers: int = option("simulated: processes that run clients, on Ray", 1, ge=1)
    ray_address: str | None = option("simulated: address of a Ray cluster", None, metavar="ADDRESS")
    gpus_per_client: float = option("simulated: such as 0.25", 0.0, ge=0)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        from openfl_audio.training.run_settings import RunSettings

        add_fields(parser, cls, {name: RunSettings.model_fields[name].description for name in SETTINGS})

    @classmethod
    def settings_class(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        return settings_of_workload(given)

    def run(self) -> None:
        use_one_thread()
        from openfl_audio.experiments.run import preprocess, run
        from openfl_audio.experiments.workloads import find_file, find_workload

        workload = find_workload(self.workload)
        settings = load_settings(find_file(workload, self.config), workload.config_class, self.changes())
        if self.preprocess:
            clips = preprocess(workload, settings, self.mode, self.data, self.client_ids)
            print(f"{clips} clips are in the cache")
            return
        result = run(
            workload,
            settings,
            self.mode,
            self.data,
            self.out,
            self.client_ids,
            self.workers,
            self.ray_address,
            self.gpus_per_client,
        )
        for name, metrics in result.get("metrics", {}).items():
            for split, values in metrics.items():
                print(f"{name} model, {split}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))
        print(f"{self.out} has result.json, history.jsonl, model/ and plots")

    def changes(self) -> dict[str, Any]:
        """Return the settings that options change. Raises SettingsError for one that is given in two ways."""
        changes = dict(map(parse_change, self.set_))
        for key in SETTINGS:
            value = getattr(self, key)
            if value is None:
                continue
            if key in changes:
                raise SettingsError(
                    f"--set {key}={changes[key]} and --{key.replace('_', '-')} {value}: give one of them"
                )
            changes[key] = value
        return changes


def settings_of_workload(given: Mapping[str, Any]) -> type[BaseModel]:
    """Return the class of a workload's settings. Raises SettingsError if `given` names none."""
    from openfl_audio.experiments.workloads import find_workload

    if not given.get("workload"):
        raise SettingsError("name the workload before --help-settings")
    return find_workload(given["workload"]).config_class


def use_one_thread() -> None:
    """Set what the libraries read when they are imported, unless the user has.

    Sums depend on how many threads share them, and many small clients are better run side by side.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
