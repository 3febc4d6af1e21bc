"""Texts and numbers for the browser, in the words of notebook and command line: it places texts, and makes none."""

import time
from typing import Any

from openfl_audio.notebook.live_view import doing_of, live_title, show_left, show_memory, show_pace
from openfl_audio.protocol.certificates import WARNING_DAYS
from openfl_audio.protocol.messages import (
    EnvoyProgress,
    EnvoySummary,
    ExperimentDetails,
    ExperimentSummary,
    FederationStatus,
    LiveRound,
    say_waits,
)
from openfl_audio.protocol.page import SessionDetails
from openfl_audio.protocol.plan import VALIDATE, BestModel
from openfl_audio.text import shorten_error
from openfl_audio.training.history import (
    Record,
    envoy_rows,
    note_sentences,
    privacy_sentence,
    rounds_done,
    show_bytes,
    show_seconds,
    show_value,
    updates_that_counted,
)

ENDED = ("finished", "failed", "stopped")
DAY_SECONDS = 86_400.0


def federation(status: FederationStatus) -> dict[str, Any]:
    """Return the envoys and experiments of a federation, those that run or wait first."""
    experiments = sorted(status.experiments, key=lambda each: (each.status in ENDED, -each.submitted))
    return {
        "envoys": [envoy(each) for each in status.envoys],
        "experiments": [summary(each) for each in experiments],
    }


def envoy(entry: EnvoySummary) -> dict[str, Any]:
    """Return an envoy's row."""
    now = progress(entry.progress) if entry.progress else None
    expires = entry.certificate_expires
    clips = {task: units["clips"] for task, units in entry.sizes.items() if "clips" in units}
    return {
        "name": entry.name,
        "state": "offline" if not entry.online else now["state"] if now else "busy" if entry.experiment else "free",
        "since": entry.since,
        "corpus": entry.corpus,
        "clips": ", ".join(f"{count:,} to {task}" for task, count in clips.items()),
        "experiment": entry.experiment,
        "now": now,
        "lastError": entry.last_error,
        "versions": [f"{name} {version}" for name, version in entry.versions.items()],
        "expires": expires,
        "expiresSoon": expires is not None and expires - time.time() < WARNING_DAYS * DAY_SECONDS,
    }


def summary(entry: ExperimentSummary) -> dict[str, Any]:
    """Return an experiment's row."""
    seconds = entry.seconds_per_round
    return {
        "name": entry.name,
        "owner": entry.owner,
        "corpus": entry.corpus,
        "status": entry.status,
        "rounds": rounds_done(entry.round, entry.rounds),
        "share": min(entry.round, entry.rounds) / entry.rounds if entry.rounds else 0,
        "pace": "" if seconds is None else show_seconds(seconds),
        "waits": entry.waits and say_waits(entry.waits),
        "waitingFor": ", ".join(entry.waiting_for),
        "error": shorten_error(entry.error),
        "submitted": entry.submitted,
        "ended": entry.ended,
    }


def details(entry: ExperimentDetails, session: SessionDetails) -> dict[str, Any]:
    """Return an experiment as its own page shows it, with the actions that this person has on it."""
    best = entry.best
    return summary(entry) | {
        "metric": best.metric,
        "best": f"{best.metric}, {'higher' if best.direction == 'max' else 'lower'} is better",
        "envoys": entry.envoys,
        "departed": {name: shorten_error(reason) for name, reason in entry.departed.items()},
        "now": live(entry.now) if entry.now else None,
        "settings": settings(entry.plan),
        "models": models(entry) if "GetModel" in session.calls else [],
        "actions": actions(entry, session),
        "logs": "GetLog" in session.calls,
    }


def actions(entry: ExperimentDetails, session: SessionDetails) -> list[str]:
    """Return what a person may do with an experiment now; the director decides when it is done."""
    has_ended = entry.status in ENDED
    possible = {
        "stop": ("StopExperiment", not has_ended),
        "resume": ("ResumeExperiment", entry.status in ("failed", "stopped")),
        "delete": ("DeleteExperiment", has_ended),
        "drop": ("DropEnvoy", entry.status != "finished"),
    }
    return [name for name, (call, is_now) in possible.items() if is_now and call in session.calls]


def models(entry: ExperimentDetails) -> list[str]:
    """Return the names of the models that the director keeps once there are some."""
    return ["initial", "last", *BestModel.model_validate(entry.plan["best"]).models]


def settings(plan: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return an experiment's plan as keys with dots and values; what is not set is left out.

    >>> settings({"rounds": 3, "participation": {"quorum": 2, "seed": None}, "envoys": ["a", "b"]})
    [('rounds', '3'), ('participation.quorum', '2'), ('envoys', 'a, b')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in plan.items():
        if isinstance(value, dict):
            rows += settings(value, f"{prefix}{key}.")
        elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
            rows += [row for number, each in enumerate(value, 1) for row in settings(each, f"{prefix}{key}.{number}.")]
        elif value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}", text))
    return rows


def live(now: LiveRound) -> dict[str, Any]:
    """Return what happens in the open round."""
    return {
        "round": now.live,
        "title": live_title(now),
        "envoys": [progress(each) for each in now.envoys],
        "others": now.others,
    }


def progress(entry: EnvoyProgress) -> dict[str, Any]:
    """Return what an envoy does, and the share of it that is done, None where that is not known."""
    done, total = (entry.bytes_moved, entry.bytes_total) if entry.transfer else (entry.step, entry.total)
    share = 1.0 if entry.state == "done" else min(1.0, done / total) if total else None
    is_silent = entry.silent_seconds is not None
    return {
        "name": entry.name,
        "state": "silent" if entry.state == "works" and is_silent else entry.state,
        "doing": f"{doing_of(entry)}: {entry.why}" if entry.why else doing_of(entry),
        "pace": show_pace(entry),
        "left": show_left(entry),
        "memory": show_memory(entry),
        "share": share,
    }


def round_of(record: Record) -> dict[str, Any]:
    """Return one round: its envoys with their values, what did not count, and the parts of metrics (of a class)."""
    rows = list(envoy_rows(record))
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if "/" not in name]
    columns = [name for name in names if name not in ("round", "why")]
    return {
        "round": record["round"],
        "summary": f"{show_seconds(record['seconds'])}, updates that counted: {updates_that_counted(record)}, "
        f"{show_bytes(record['bytes_up'])} sent and {show_bytes(record['bytes_down'])} received by envoys",
        "sentences": [sentence for sentence in (privacy_sentence(record), *note_sentences(record)) if sentence],
        "columns": [_heading(name) for name in columns] + ["why"],
        "envoys": [[_cell(name, row.get(name)) for name in columns] + [row["why"]] for row in rows],
        "states": [row["state"] for row in rows],
        "classes": classes(record["metrics"].get(VALIDATE, {})),
    }


def _heading(name: str) -> str:
    return f"{name} (s)" if name in ("download", "tasks", "upload") else name


def _cell(name: str, value: Any) -> str:
    return "" if value is None else show_value(name, value)


def classes(metrics: dict[str, float]) -> list[dict[str, Any]]:
    """Return the metrics that are parts of others, such as "recall/dog", in a table for each: class and value.

    >>> classes({"recall": 0.5, "recall/cat": 0.25, "recall/dog": 0.75})
    [{'metric': 'recall', 'rows': [('cat', '0.250', 0.25), ('dog', '0.750', 0.75)]}]
    """
    tables: dict[str, list[tuple[str, str, float]]] = {}
    for name, value in sorted(metrics.items()):
        metric, slash, of_class = name.partition("/")
        if slash:
            tables.setdefault(metric, []).append((of_class, show_value(name, value), value))
    return [{"metric": metric, "rows": rows} for metric, rows in tables.items()]
