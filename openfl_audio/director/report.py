"""Release report of an experiment's model: what the record of its director says of it, and those of its sites."""

import html
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openfl_audio.errors import RecordError
from openfl_audio.privacy.accounting import explained
from openfl_audio.privacy.replay import secure_rounds
from openfl_audio.protocol.audit import entries_of, verify
from openfl_audio.protocol.metrics import shown_name
from openfl_audio.protocol.record import RECORD, sha256_of_file

SECURE_COLUMNS = ("round", "sum of", "envoys", "least", "secure against")
PRIVACY_COLUMNS = ("envoy", "epsilon", "delta", "unit", "of data that differ by", "trusts")
STEERING = ("stopped", "resumed", "dropped", "departed", "joined", "fetched", "deleted")
STYLE = """body { font: 11pt/1.4 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111 }
table { border-collapse: collapse; width: 100%; margin: 0.5em 0 1.5em }
th, td { border-bottom: 1px solid #bbb; padding: 0.2em 0.6em; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere }
h2 { font-size: 1.1em; break-after: avoid } tr { break-inside: avoid }
@page { margin: 2cm } @media print { body { margin: 0; max-width: none } }"""


class Section(NamedTuple):
    """A part of a report: a heading, and a table with its columns."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Report(NamedTuple):
    """Report of an experiment."""

    title: str
    sections: Sequence[Section]

    def markdown(self) -> str:
        """Return the report as Markdown."""
        parts = [f"# {_plain(self.title)}"]
        for section in self.sections:
            lines = [_line(section.columns), _line(["---"] * len(section.columns), as_is=True)]
            parts += [f"## {section.heading}", "\n".join(lines + [_line(row) for row in section.rows])]
        return "\n\n".join(parts) + "\n"

    def page(self) -> str:
        """Return the report as a page of HTML that needs nothing else and prints well."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for section in self.sections:
            head = "".join(f"<th>{html.escape(column)}</th>" for column in section.columns)
            rows = "".join(
                "<tr>" + "".join(f"<td>{html.escape(_text(cell))}</td>" for cell in row) + "</tr>\n"
                for row in section.rows
            )
            heading = html.escape(section.heading)
            parts.append(
                f"<h2>{heading}</h2>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>\n</table>"
            )
        body, title = "\n".join(parts), html.escape(self.title)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )


def make_report(runs: Path, experiment: str, site_records: Sequence[Path] = ()) -> Report:
    """Make the report of an experiment of the director whose experiments are in `runs`.

    `site_records` are records of envoys, from which approvals come. Raises RecordError if the record has no such
    experiment.
    """
    record = runs / RECORD
    entries = _last_of(list(entries_of(record, experiment)))
    if not entries:
        raise RecordError(f"{record} has no experiment '{experiment}'")
    of_sites = {path: list(entries_of(path, experiment)) for path in site_records}
    measured = _measured(entries)
    sections = [
        _summary(entries),
        Section("Hashes (SHA-256)", ("of", "hash"), _hashes(entries[0], runs / experiment)),
        _participants(entries),
        Section("Aggregation", ("setting", "value"), _settings(entries[0].get("aggregation", {}))),
        _approvals(of_sites),
        Section("Secure aggregation, by the signatures of its envoys", SECURE_COLUMNS, list(_secure(entries))),
        Section("Differential privacy", PRIVACY_COLUMNS, list(_privacy(measured))),
        Section("Refused or missing", ("round", "envoy", "reason"), list(_lost(entries))),
        Section("Steering", ("time", "what", "by", "about"), list(_steering(entries))),
        Section("Metrics over all clips", ("round", "task", "metric", "value"), list(_metrics(measured))),
        Section("Metrics of each site", ("round", "envoy", "task", "metric", "value"), list(_of_sites(measured))),
        Section("Versions", ("side", "since", "version"), list(_versions([record, *site_records]))),
        Section("Records", ("file", "is"), [row for path in (record, *site_records) for row in _chain(path)]),
    ]
    return Report(f"Release report: {experiment}", [section for section in sections if section.rows])


def _last_of(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries from the last submission on: the name may have been that of an experiment since deleted."""
    starts = [at for at, entry in enumerate(entries) if entry["event"] == "submitted"]
    return entries[starts[-1] :] if starts else []


def _summary(entries: list[dict[str, Any]]) -> Section:
    submitted = entries[0]
    ends = [entry for entry in entries if entry["event"] == "ended"]
    rows: list[list[Any]] = [["submitted", f"{submitted['time'][:19]} UTC by {submitted.get('by')}"]]
    rows += [["rounds planned", submitted.get("rounds")]]
    rows += [["rounds aggregated", sum(entry["event"] == "aggregated" for entry in entries)]]
    rows += [["ended", f"{end['time'][:19]} UTC: {end.get('status')} {end.get('reason', '')}".strip()] for end in ends]
    return Section("Experiment", ("", ""), rows)


def _hashes(submitted: dict[str, Any], folder: Path) -> list[list[Any]]:
    names = {"archive_sha256": "archive with the code", "plan_sha256": "plan", "model_sha256": "initial model"}
    rows = [[name, submitted[key]] for key, name in names.items() if key in submitted]
    rows += [[path.name, sha256_of_file(path)] for path in sorted(folder.glob("*.safetensors"))]
    return rows


def _participants(entries: list[dict[str, Any]]) -> Section:
    updates: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()
    clips: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        if entry["event"] == "received":
            updates[str(entry.get("envoy"))] += 1
            n_bytes[str(entry.get("envoy"))] += entry.get("bytes", 0)
        elif entry["event"] == "aggregated":
            for envoy, count in entry.get("clips", {}).items():
                clips[envoy].append(count)
    names = sorted({*entries[0].get("envoys", ()), *updates})
    rows = [
        [
            name,
            updates[name],
            n_bytes[name],
            len(clips[name]),
            _span(clips[name]),
            entries[0].get("registered", {}).get(name, ""),
        ]
        for name in names
    ]
    columns = ("envoy", "updates", "bytes", "rounds that it trained in", "clips a round", "registered")
    return Section("Participants", columns, rows)


def _span(counts: list[int]) -> str:
    return "" if not counts else str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _settings(aggregation: dict[str, Any], prefix: str = "") -> list[list[Any]]:
    rows: list[list[Any]] = []
    for key, value in aggregation.items():
        rows += _settings(value, f"{prefix}{key}.") if isinstance(value, dict) else [[prefix + key, value]]
    return rows


def _approvals(of_sites: dict[Path, list[dict[str, Any]]]) -> Section:
    rows = [
        [str(path), entry["time"][:19], entry["event"], entry.get("by", ""), entry.get("sha256", "")]
        for path, entries in of_sites.items()
        for entry in entries
        if entry["event"] in ("approved", "rejected", "refused by policy")
    ]
    return Section("Approvals, by the sites' records", ("record", "time", "what", "by", "hash"), rows)


def _secure(entries: list[dict[str, Any]]) -> Iterator[Sequence[Any]]:
    for number, summed in secure_rounds(entries):
        if isinstance(summed, str):
            yield number, "", "", "", f"does not hold: {summed}"
        else:
            who = ", ".join(summed.envoys)
            yield number, f"{len(summed.envoys)} of {summed.of}", who, summed.threshold, summed.against


def _lost(entries: list[dict[str, Any]]) -> Iterator[Sequence[Any]]:
    for entry in entries:
        if entry["event"] == "refused":
            yield entry.get("round"), entry.get("envoy"), entry.get("reason")
        elif entry["event"] == "missing":
            yield from ((entry.get("round"), envoy, "no update when the round closed") for envoy in entry["envoys"])


def _steering(entries: list[dict[str, Any]]) -> Iterator[Sequence[Any]]:
    for entry in entries:
        if entry["event"] in STEERING:
            about = entry.get("envoy") or entry.get("model") or ""
            yield entry["time"][:19], entry["event"], entry.get("by", ""), " ".join([about, entry.get("reason", "")])


def _measured(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was measured in the round that began with the best model, and in the last one.

    After a restart a round may have been measured twice: the later time counts.
    """
    rounds = {entry["round"]: entry for entry in entries if entry["event"] == "measured"}
    best = [entry for entry in rounds.values() if entry["best"]]
    chosen = {entry["round"]: entry for entry in (*best[-1:], *list(rounds.values())[-1:])}
    return list(chosen.values())


def _metrics(measured: list[dict[str, Any]]) -> Iterator[Sequence[Any]]:
    for entry in measured:
        number = f"{entry['round']}, of the best model" if entry["best"] else entry["round"]
        for task, metrics in entry["metrics"].items():
            yield from ((number, task, shown_name(entry, task, name), value) for name, value in metrics.items())


def _of_sites(measured: list[dict[str, Any]]) -> Iterator[Sequence[Any]]:
    for entry in measured:
        for envoy, tasks in entry["envoys"].items():
            for task, metrics in tasks.items():
                yield from ((entry["round"], envoy, task, metric, value) for metric, value in metrics.items())


def _privacy(measured: list[dict[str, Any]]) -> Iterator[Sequence[Any]]:
    """Yield what each envoy has spent by the last round, where the experiment has differential privacy."""
    for entry in measured[-1:]:
        if entry.get("privacy"):
            spent = explained(entry["privacy"])
            for envoy, epsilon in spent["epsilon"].items():
                yield envoy, epsilon, spent["delta"], spent["unit"], spent["adjacency"], spent["trust"]


def _versions(records: Sequence[Path]) -> Iterator[Sequence[Any]]:
    for path in records:
        owner = ""
        for entry in entries_of(path):
            owner = owner or str(entry.get("owner", ""))
            if entry["event"] in ("director_started", "envoy_started"):
                yield owner, entry["time"][:19], entry.get("version", "")


def _chain(path: Path) -> Iterator[Sequence[Any]]:
    verdict = verify(path)
    yield str(path), "; ".join(verdict.faults) or "whole: each entry has the hash of the one before"


def _text(cell: Any) -> str:
    return f"{cell:.6g}" if isinstance(cell, float) else "" if cell is None else str(cell)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in r"\`*_{}[]#|!~$" else character for character in escaped)


def _line(cells: Sequence[Any], as_is: bool = False) -> str:
    return "| " + " | ".join(str(cell) if as_is else _plain(_text(cell)) for cell in cells) + " |"
