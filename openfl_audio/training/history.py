"""The records of an experiment's rounds as a table, as sentences and as scores."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from openfl_audio.protocol.plan import TRAIN, VALIDATE

# The column that says what did not count, and why. It is there where there is something to say.
NOTES = "left out"
# What the name of a metric's column ends with where the values are means of envoys' values, not values over all clips.
MEAN_OF_SITES = " (mean of sites)"
# Envoys that are named where many have the same to say.
MOST_NAMES_SHOWN = 5

Record = dict[str, Any]


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a table with a row a round.

    Its columns are `round`, validation metrics, `train ...` metrics, `seconds`, bytes `sent` by all envoys, and where
    something did not count, or not in full, `left out`: who and why.
    A metric with a slash in its name, such as the share of one class, is a part of others and has no column.
    A metric whose value over all clips does not follow from those of the envoys is called "... (mean of sites)".
    """
    return pd.DataFrame([table_row(record) for record in records], columns=table_columns(records))


def table_row(record: Record) -> dict[str, Any]:
    """Return the row of a round's record: values by column, without those that the round has not."""
    metrics, trained = _metrics(record)
    row = {"round": record["round"], **metrics, **trained, "seconds": record["seconds"], "sent": record["bytes_up"]}
    sentences = note_sentences(record)
    return row | ({NOTES: "; ".join(sentences)} if sentences else {})


def note_sentences(record: Record) -> list[str]:
    """Return what did not count in a round, or not in full: one sentence for all envoys that share a reason."""
    envoys: dict[str, list[str]] = {}
    for envoy, reasons in record.get("notes", {}).items():
        for reason in reasons:
            envoys.setdefault(reason, []).append(envoy)
    return [f"{_names(who)}: {reason}" for reason, who in envoys.items()]


def _names(envoys: Sequence[str]) -> str:
    shown = ", ".join(envoys[:MOST_NAMES_SHOWN])
    return shown if len(envoys) <= MOST_NAMES_SHOWN else f"{shown} and {len(envoys) - MOST_NAMES_SHOWN} more"


def show_value(name: str, value: float | None) -> str:
    """Return the value of a column as people read it."""
    if value is None:
        return "-"
    if name == "sent":
        return f"{value / 1e6:.2f} MB"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table_columns(records: Sequence[Record]) -> list[str]:
    """Return the names of all rows' values: a later round may have metrics that the first had not."""
    metrics: set[str] = set()
    trained: set[str] = set()
    for record in records:
        validated, learned = _metrics(record)
        metrics.update(validated)
        trained.update(learned)
    notes = [NOTES] if any(record.get("notes") for record in records) else []
    return ["round", *sorted(metrics), *sorted(trained), "seconds", "sent", *notes]


def _metrics(record: Record) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of validation and of training, by the names of their columns."""
    trained = {f"train {name}": value for name, value in _columns(record, TRAIN).items()}
    return _columns(record, VALIDATE), trained


def _columns(record: Record, task: str) -> dict[str, float]:
    means_of_sites = record.get("means_of_sites", {}).get(task, [])
    metrics = sorted((name, value) for name, value in record["metrics"].get(task, {}).items() if "/" not in name)
    return {name + MEAN_OF_SITES * (name in means_of_sites): value for name, value in metrics}


def columns_of(history: pd.DataFrame, metric: str) -> list[str]:
    """Return the columns of `to_frame` that have the validation `metric`: exact, as a mean of sites, both, or none."""
    return [name for name in (metric, metric + MEAN_OF_SITES) if name in history.columns]


def scores_by_round(records: Sequence[Record], metric: str) -> dict[int, float]:
    """Return the validation `metric` of the rounds in which it was measured, and defined."""
    validated = {record["round"]: record["metrics"].get(VALIDATE, {}) for record in records}
    return {number: metrics[metric] for number, metrics in validated.items() if metric in metrics}
