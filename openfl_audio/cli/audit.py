"""`openfl-audio audit`: what a record says, whether it is whole, and a report of an experiment from it."""

import json
import sys
from pathlib import Path
from typing import ClassVar

from openfl_audio.cli.options import Command, argument, option
from openfl_audio.errors import RecordError

HIDDEN = ("number", "time", "before", "event", "experiment", "certificate")


class Verify(Command):
    """Check a record, and compare it with what the other side holds of it.

    The chain of hashes shows lines that were changed, lost, added or moved. A cut end, or a record that was written
    anew as a whole, is found by the other side's record, which has signed heads of this one. The exit code is 1 if
    there is a fault.
    """

    example: ClassVar[str] = (
        "openfl-audio audit verify runs/record.jsonl --against site-a/record.jsonl --ca certificates/ca.crt"
    )

    file: Path = argument("the record to check", metavar="FILE")
    against: Path | None = option("record of the other side: the director's, or an envoy's", None, metavar="FILE")
    ca: Path | None = option("certificate of the authority, ca.crt", None, metavar="FILE")

    def run(self) -> int:
        from openfl_audio.protocol.audit import verify

        try:
            root = self.ca.read_bytes() if self.ca else None
        except OSError as error:
            raise RecordError(f"{self.ca} cannot be read: {error.strerror}") from error
        verdict = verify(self.file, self.against, root)
        for note in verdict.notes:
            print(note)
        for fault in verdict.faults:
            print(f"fault: {fault}")
        if not verdict.faults:
            print("the chain holds" + (", and agrees with the other side" if self.against else ""))
        if self.against is None:
            print("Without --against the other side's record, neither a cut end nor a rewrite can be seen.")
        return int(bool(verdict.faults))


class ShowRecord(Command):
    """Show the entries of a record."""

    example: ClassVar[str] = "openfl-audio audit show runs/record.jsonl --experiment my-experiment"

    file: Path = argument("the record", metavar="FILE")
    experiment: str | None = option("show what concerns this experiment only", None, metavar="NAME")
    json_: bool = option("print the entries as they are, a line each", False)

    def run(self) -> None:
        from openfl_audio.protocol.audit import entries_of

        for entry in entries_of(self.file, self.experiment):
            if self.json_:
                sys.stdout.write(json.dumps(entry) + "\n")
                continue
            fields = ", ".join(f"{key} {_words(value)}" for key, value in entry.items() if key not in HIDDEN)
            about = f" '{entry['experiment']}'" if "experiment" in entry else ""
            line = f"{entry['number']:6} {entry['time'][:19]} {entry['event']}{about}{': ' if fields else ''}{fields}"
            print("".join(character if character.isprintable() else " " for character in line))


def _words(value: object) -> str:
    if isinstance(value, str):
        return f"{value[:12]}..." if len(value) == 64 and value.isalnum() else value
    return json.dumps(value)


class ReportRecord(Command):
    """Write the release report of an experiment's model, as Markdown and as a page that prints.

    Its numbers come from the director's record, its metrics from the folder of the experiment, and approvals from the
    records of sites, where they are given.
    """

    example: ClassVar[str] = (
        "openfl-audio audit report my-experiment --runs runs --sites site-a/record.jsonl --out report"
    )

    experiment: str = argument("name of the experiment", metavar="NAME")
    runs: Path = option("folder of the director's experiments")
    sites: list[Path] = option("records of envoys", [], metavar="FILE")
    out: Path = option("folder of the report")

    def run(self) -> None:
        from openfl_audio.director.report import make_report
        from openfl_audio.files import make_folder, write_whole
        from openfl_audio.protocol.plan import NAME

        if not NAME.fullmatch(self.experiment):
            raise RecordError(f"experiment name {self.experiment!r}: use letters, digits, '.', '_' and '-'")
        report = make_report(self.runs, self.experiment, self.sites)
        make_folder(self.out)
        for suffix, text in (("md", report.markdown()), ("html", report.page())):
            path = self.out / f"{self.experiment}.{suffix}"
            write_whole(path, text.encode(), durable=False)
            print(f"wrote {path}")
