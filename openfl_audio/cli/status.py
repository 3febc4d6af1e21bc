"""`openfl-audio envoys` and `openfl-audio experiments`: who is there, and what runs."""

import time
from abc import abstractmethod
from typing import Any, ClassVar

from rich.table import Table

from openfl_audio.cli.connected import Connected, print_json, print_tables, table_of
from openfl_audio.cli.options import option
from openfl_audio.protocol.messages import EnvoyProgress
from openfl_audio.text import shorten_error

Rows = list[dict[str, Any]]


class _Status(Connected):
    """Base of the commands that list something."""

    json_: bool = option("print all that the director says, for machines", False)

    def run(self) -> None:
        with self.calls() as calls:
            part = self.part(calls.get_status().model_dump())
        print_json(part) if self.json_ else print_tables(self.table(part))

    @staticmethod
    @abstractmethod
    def part(status: dict[str, Any]) -> Rows:
        """Return the part of a director's status that the command is about."""

    @staticmethod
    @abstractmethod
    def table(rows: Rows) -> Table:
        """Return that part as a table."""


class Envoys(_Status):
    """List the envoys of a running federation.

    Their corpora are shown, whether they are online and since when, which experiment they work on and how far they are,
    the memory that it holds, and for operators and monitors why an experiment last failed there. --json also has their
    versions, and when their certificates expire.
    """

    example: ClassVar[str] = "openfl-audio envoys --director fl.example.org:50051 --user ada"

    @staticmethod
    def part(status: dict[str, Any]) -> Rows:
        return status["envoys"]

    @staticmethod
    def table(rows: Rows) -> Table:
        return table_of(
            "Envoys", ("name", "corpus", "online", "experiment", "doing", "memory", "last error"), map(_envoy, rows)
        )


class Experiments(_Status):
    """List the experiments of a running federation.

    Their owners are shown, how many rounds are done, which envoys they wait for, and errors.
    """

    example: ClassVar[str] = "openfl-audio experiments --director fl.example.org:50051 --user ada"

    @staticmethod
    def part(status: dict[str, Any]) -> Rows:
        return status["experiments"]

    @staticmethod
    def table(rows: Rows) -> Table:
        columns = ("name", "owner", "corpus", "status", "round", "seconds a round", "waiting for", "error")
        return table_of("Experiments", columns, map(_experiment, rows))


def _envoy(envoy: dict[str, Any]) -> list[str]:
    from openfl_audio.notebook.live_view import describe_envoy, show_memory

    since = f" since {time.strftime('%m-%d %H:%M:%S', time.localtime(envoy['since']))}" if envoy["since"] else ""
    progress = EnvoyProgress.model_validate(envoy["progress"]) if envoy["progress"] else None
    return [
        envoy["name"],
        envoy["corpus"],
        ("yes" if envoy["online"] else "no") + since,
        envoy["experiment"],
        describe_envoy(progress) if progress else "",
        show_memory(progress) if progress else "",
        envoy["last_error"],
    ]


def _experiment(experiment: dict[str, Any]) -> list[str]:
    from openfl_audio.training.history import rounds_done

    seconds = experiment["seconds_per_round"]
    return [
        experiment["name"],
        experiment["owner"],
        experiment["corpus"],
        experiment["status"],
        rounds_done(experiment["round"], experiment["rounds"]),
        "" if seconds is None else f"{seconds:.1f}",
        experiment["waits"] or ", ".join(experiment["waiting_for"]),
        shorten_error(experiment["error"]),
    ]
