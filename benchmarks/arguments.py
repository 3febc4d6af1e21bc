"""Options that the benchmarks share, and the results that --save keeps."""

import argparse
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from openfl_audio.files import make_folder, write_json

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Part):
    """The machine of a measurement; `cores` are those that the process may use."""

    cores: int
    processor: str
    python: str
    torch: str


class Result(_Part):
    """A measurement as it lies in benchmarks/results.

    Attributes:
        command: the call that measured, from the repository's root.
        date: the end of the measurement, in UTC, to the second.
        commit: the code's, with "+changes" where files differed from it.
        note: what a reader has to know besides, such as that the machine was busy.
        values: what the benchmark prints.
    """

    command: str
    date: datetime
    commit: str
    machine: Machine
    note: str = ""
    values: Any


def whole_number(text: str) -> int:
    """Return a whole number from 1 on; for the `type` of an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} should be a whole number from 1 on")
    return int(text)


def add_save(parser: argparse.ArgumentParser) -> None:
    """Add the options --save and --note, which `save` reads."""
    parser.add_argument("--save", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    parser.add_argument("--note", default="", help="what a reader of the result has to know, such as a busy machine")


def save(options: argparse.Namespace, values: Any, folder: Path = RESULTS) -> None:
    """Keep `values` as `folder`/NAME.json, whole or not at all, where the options ask for it."""
    if options.save is None:
        return
    result = Result(
        command=_command(),
        date=datetime.now(timezone.utc).replace(microsecond=0),
        commit=_commit(),
        machine=Machine(
            cores=len(os.sched_getaffinity(0)),
            processor=_processor(),
            python=platform.python_version(),
            torch=version("torch"),
        ),
        note=options.note,
        values=values,
    )
    make_folder(folder)
    write_json(folder / f"{options.save}.json", result.model_dump(mode="json"))


def load(path: Path) -> Result:
    """Return a result that `save` wrote. Raises ValueError for a file that is none."""
    return Result.model_validate_json(path.read_bytes())


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script.name
    return shlex.join(["python", str(name), *sys.argv[1:]])


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
