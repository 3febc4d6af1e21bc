"""`openfl-audio show`, `watch`, `logs`, `stop`, `resume`, `drop`, `delete`, `fetch`: experiments, seen and steered."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table

from openfl_audio.cli.connected import Connected, moment, print_json, print_tables, printable, table_of
from openfl_audio.cli.options import argument, option
from openfl_audio.errors import SettingsError
from openfl_audio.files import replacing
from openfl_audio.protocol.certificates import OPERATOR
from openfl_audio.protocol.messages import LiveRound
from openfl_audio.text import shorten_error

if TYPE_CHECKING:
    from openfl_audio.notebook.director_calls import DirectorCalls

STOPPED = 3  # the exit status of `watch` for an experiment that somebody stopped
ROUNDS_SHOWN = 10
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
NAME = "name of the experiment"


class Show(Connected):
    """Show an experiment.

    That is its state, its envoys, its last rounds, and what did not count in them.
    """

    example: ClassVar[str] = "openfl-audio show my-experiment --director fl.example.org:50051 --user ada"

    name: str = argument(NAME)
    json_: bool = option("print all that the director says, for machines", False)

    def run(self) -> None:
        with self.calls() as calls:
            details = calls.get_experiment(self.name).model_dump()
        print_json(details) if self.json_ else print_tables(*tables_of(details))


class Watch(Connected):
    """Show an experiment round by round.

    Interrupting the command leaves the experiment running. The exit status is 0 where the experiment has finished, 1
    where it failed, and 3 where somebody stopped it.
    """

    example: ClassVar[str] = "openfl-audio watch my-experiment --director fl.example.org:50051 --user ada"

    name: str = argument(NAME)
    json_: bool = option("print a line of JSON a round, and a second while one is open, for machines", False)

    def run(self) -> int | None:
        import json

        from openfl_audio.notebook.live_view import show_progress
        from openfl_audio.protocol.messages import Ended

        with self.calls() as calls:
            experiment = calls.get_experiment(self.name)
            messages = calls.stream_history(self.name)
            status = ""
            if self.json_:
                for message in messages:
                    content = message if isinstance(message, dict) else message.model_dump()
                    print(json.dumps(content), flush=True)
                    status = message.status if isinstance(message, Ended) else status
            else:
                best = experiment.best
                show_progress(messages, self.name, best.metric, best.direction, experiment.round)
                status = calls.get_experiment(self.name).status
        return STOPPED if status == "stopped" else None


class Logs(Connected):
    """Show what tasks printed on an envoy.

    The site of the envoy lets that leave with `reports: logs` in its settings, and only the experiment's owner reads
    it. Without an envoy all of them are shown, one after the other.
    """

    example: ClassVar[str] = "openfl-audio logs my-experiment site-a -f --director fl.example.org:50051 --user ada"

    name: str = argument(NAME)
    envoys: list[str] = argument("names of envoys", metavar="ENVOY", nargs="*")
    follow: bool = option("show what comes until the experiment has ended; of one envoy", False, "-f")

    def run(self) -> None:
        if self.follow and len(self.envoys) != 1:
            raise SettingsError("--follow follows the log of one envoy: name it")
        with self.calls() as calls:
            for envoy in self.envoys or calls.get_experiment(self.name).envoys:
                if len(self.envoys) != 1:
                    print(f"==> {envoy}")
                for text in calls.get_log(self.name, envoy, self.follow):
                    print(printable(text), end="", flush=True)


class Stop(Connected):
    """End experiments.

    Their history and models stay, and resume continues them.
    """

    example: ClassVar[str] = "openfl-audio stop my-experiment --director fl.example.org:50051 --user ada"

    names: list[str] = argument("names of the experiments", metavar="NAME")

    def run(self) -> None:
        with self.calls() as calls:
            for name in self.names:
                calls.stop_experiment(name)
                print(f"experiment '{name}' is {calls.get_experiment(name).status}")


class Resume(Connected):
    """Continue an experiment that has ended.

    One that failed or was stopped continues after its last whole round. It begins when its envoys are online and free.
    """

    example: ClassVar[str] = "openfl-audio resume my-experiment --director fl.example.org:50051 --user ada"

    name: str = argument(NAME)

    def run(self) -> None:
        with self.calls() as calls:
            calls.resume_experiment(self.name)
            experiment = calls.get_experiment(self.name)
        waits = f": {experiment.waits}" if experiment.waits else ""
        print(f"experiment '{self.name}' is {experiment.status}, from round {experiment.round} on{waits}")


class Drop(Connected):
    """Continue without an envoy.

    The experiment continues without it for good. What the envoy has sent in this round counts. One that the others need
    for their quorum cannot be dropped.
    """

    example: ClassVar[str] = "openfl-audio drop my-experiment site-b --director fl.example.org:50051 --user olga"

    name: str = argument(NAME)
    envoy: str = argument("name of the envoy")

    def run(self) -> None:
        with self.calls() as calls:
            calls.drop_envoy(self.name, self.envoy)
            members = ", ".join(calls.get_experiment(self.name).envoys)
        print(f"experiment '{self.name}' continues without envoy '{self.envoy}', on {members}")


class Delete(Connected):
    """Remove experiments that have ended.

    Their models and histories are removed from the director's disk. With --older-than, all that ended so long ago are
    removed: a user's own, or for an operator everybody's.
    """

    example: ClassVar[str] = "openfl-audio delete --older-than 30d --director fl.example.org:50051 --user olga"

    names: list[str] = argument("names of the experiments", metavar="NAME", nargs="*")
    older_than: str | None = option("delete what ended so long ago, such as 12h, 30d or 8w", None, metavar="AGE")

    def run(self) -> None:
        if bool(self.names) == (self.older_than is not None):
            raise SettingsError("give either names of experiments or --older-than")
        age_s = None if self.older_than is None else seconds_of(self.older_than)
        with self.calls() as calls:
            names = self.names if age_s is None else old_names(calls, time.time() - age_s)
            for name in names:
                calls.delete_experiment(name)
                print(f"experiment '{name}' is deleted")
        if not names:
            print(f"no experiment of yours ended more than {self.older_than} ago")


class Fetch(Connected):
    """Save a model of an experiment.

    A safetensors file has the tensors that are trained; those that stay frozen are as the model's recipe builds them.
    """

    example: ClassVar[str] = "openfl-audio fetch my-experiment --model best --out best.safetensors --user ada"

    name: str = argument(NAME)
    model: str = option("which one: initial, last, best, or best-METRIC of a metric that is followed too", "last")
    out: Path | None = option("a new file; NAME-MODEL.safetensors by default", None, metavar="FILE")

    def run(self) -> None:
        from openfl_audio.protocol.tensors import write_tensors
        from openfl_audio.training.history import show_bytes

        path = self.out or Path(f"{self.name}-{self.model}.safetensors")
        if path.exists():
            raise SettingsError(f"{path} exists already: give another --out")
        with self.calls() as calls, replacing(path, durable=False) as temporary:
            tensors = calls.get_model(self.name, self.model)
            write_tensors(temporary, tensors, {"experiment": self.name, "model": self.model})
        print(f"wrote {path}: {len(tensors)} tensors, {show_bytes(path.stat().st_size)}")


def seconds_of(age: str) -> float:
    """Return a duration such as "30d" in seconds. Raises SettingsError."""
    match = re.fullmatch(r"(\d+)([hdw])", age)
    if match is None:
        raise SettingsError(f"--older-than {age}: give a number of hours, days or weeks, such as 12h, 30d or 8w")
    return int(match[1]) * UNITS[match[2]]


def old_names(calls: "DirectorCalls", before: float) -> list[str]:
    """Return the names of experiments that ended before a moment, in seconds of the clock, and may be deleted."""
    return [
        each.name
        for each in calls.get_status().experiments
        if each.ended is not None and each.ended < before and (calls.role == OPERATOR or each.owner == calls.client_id)
    ]


def tables_of(details: dict[str, Any]) -> list[Table | str]:
    """Return an experiment as a table of its state, one of its last rounds, and sentences on what did not count."""
    from openfl_audio.notebook.live_view import NOW_COLUMNS, live_title, now_rows
    from openfl_audio.training.history import (
        name_of_scores,
        note_sentences,
        privacy_sentence,
        rounds_done,
        shown_columns,
        shown_row,
    )

    best = details["best"]
    best_by = name_of_scores(details["history"], best["metric"])
    rows = [
        ["owner", details["owner"]],
        ["status", details["status"] + (f" since {moment(details['ended'])}" if details["ended"] else "")],
        ["submitted", moment(details["submitted"])],
        ["rounds", rounds_done(details["round"], details["rounds"])],
        ["best by", f"{best_by}, {'higher' if best['direction'] == 'max' else 'lower'} is better"],
        ["envoys", ", ".join(details["envoys"])],
        ["waiting for", details["waits"] or ", ".join(details["waiting_for"])],
        *([f"{envoy} left", shorten_error(reason)] for envoy, reason in details["departed"].items()),
        ["error", shorten_error(details["error"])],
    ]
    state = table_of(details["name"], ("", ""), rows)
    state.show_header = False
    records = details["history"][-ROUNDS_SHOWN:]
    columns = shown_columns(records, best["metric"])
    rounds = table_of("Rounds", columns, (shown_row(record, columns) for record in records))
    live = LiveRound.model_validate(details["now"]) if details["now"] else None
    now = [table_of(live_title(live), NOW_COLUMNS, now_rows(live))] if live else []
    said = [f"round {record['round']}: {sentence}" for record in records for sentence in note_sentences(record)]
    said += [sentence for record in records[-1:] if (sentence := privacy_sentence(record))]
    return [state, *([rounds] if records else []), *said, *now]
