"""The records of an experiment's rounds as a table, as sentences and as scores."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openfl_audio.privacy.accounting import explained
from openfl_audio.protocol.messages import EnvoyProgress, ExperimentDetails, LiveRound, SecureSum
from openfl_audio.protocol.metrics import MEAN_OF_SITES, shown_name
from openfl_audio.protocol.plan import TRAIN, VALIDATE

if TYPE_CHECKING:  # slow to import, and the page shows records without it
    import pandas as pd

# The column that says what did not count, and why. It is there where there is something to say.
NOTES = "left out"
EPSILON = "epsilon"
# Envoys that are named where many have the same to say.
MOST_NAMES_SHOWN = 5

Record = dict[str, Any]


def to_frame(records: Sequence[Record]) -> "pd.DataFrame":
    """Return a table with a row a round.

    Its columns are `round`, validation metrics, `train ...` metrics, what the aggregation tells (`adapter error`),
    `seconds`, bytes `sent` by all envoys, and where something did not count, or not in full, `left out`: who and why.
    With differential privacy `epsilon` is what the rounds up to this one have cost at most at any envoy.
    A metric with a slash in its name, such as the share of one class, is a part of others and has no column.
    A metric whose value over all clips does not follow from those of the envoys is called "... (mean of sites)".
    """
    import pandas as pd

    return pd.DataFrame([table_row(record) for record in records], columns=table_columns(records))


def table_row(record: Record) -> dict[str, Any]:
    """Return the row of a round's record: values by column, without those that the round has not."""
    metrics, trained = _metrics(record)
    row = {"round": record["round"], **metrics, **trained, "seconds": record["seconds"], "sent": record["bytes_up"]}
    if (spent := epsilon_of(record)) is not None:
        row[EPSILON] = spent
    sentences = note_sentences(record)
    return row | ({NOTES: "; ".join(sentences)} if sentences else {})


def epsilon_of(record: Record) -> float | None:
    """Return what the rounds up to this one have cost at most at any envoy; None without differential privacy."""
    spent = record.get("privacy")
    return None if spent is None else max(spent["epsilon"].values(), default=0.0)


def privacy_sentence(record: Record) -> str:
    """Return what the epsilon of a round's record is about, and whom it takes trust in; "" without privacy."""
    if record.get("privacy") is None:
        return ""
    spent = explained(record["privacy"])
    return (
        f"epsilon of a {spent['unit']}, at a delta of {spent['delta']:g}, of data that differ by: "
        f"{spent['adjacency']}; trusted for it: {spent['trust']}"
    )


def per_envoy(records: Iterable[Record], now: LiveRound | None = None) -> "pd.DataFrame":
    """Return a table with a row for each envoy and round, also of the round that is open `now`.

    Its columns are `round`, `envoy`, whether its update counted ("counted", "refused" or "missing") and `why` not, then
    as far as they are known its metrics of validation and of training (`train ...`), the `train size` and `size` that
    they are means over, the `epsilon` that it has spent so far, and the seconds that its `download`, `tasks` and
    `upload` took. Rows of the open round have the
    fields of an EnvoyProgress that are known, such as `state` "works", `task`, `step` and `total`. An experiment that
    waits (see `waiting_round`) has the `state` "waits", and `why` says for what.
    """
    import pandas as pd

    rows = [row for record in records for row in envoy_rows(record)]
    if now is not None and all(row["round"] != now.live for row in rows):
        rows += [_open_row(now.live, envoy) for envoy in now.envoys]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in [*_NO_ROW, *rows] for name in row)))


def waiting_round(experiment: ExperimentDetails) -> LiveRound | None:
    """Return the next round of an experiment that waits, with what it waits for at each of its envoys."""
    if not experiment.waits:
        return None
    waits = [EnvoyProgress(name=envoy, state="waits", why=experiment.waits) for envoy in experiment.envoys]
    return LiveRound(live=experiment.round, rounds=experiment.rounds, seconds=0.0, seconds_left=None, envoys=waits)


_NO_ROW: list[dict[str, Any]] = [{"round": 0, "envoy": "", "state": "", "why": ""}]


def envoy_rows(record: Record) -> Iterator[dict[str, Any]]:
    """Yield the rows of `per_envoy` that a round's record has."""
    why = record.get("refused", {}) | dict.fromkeys(record.get("missing", []), "no answer when the round closed")
    for envoy in sorted({*record["envoys"], *why}):
        state = "counted" if envoy not in why else "refused" if envoy in record["refused"] else "missing"
        results = record["envoys"].get(envoy, {})
        metrics = results.get(VALIDATE, {}) | {f"train {name}": value for name, value in results.get(TRAIN, {}).items()}
        seconds = record.get("timings", {}).get(envoy, {})
        if envoy in (spent := (record.get("privacy") or {}).get("epsilon", {})):
            metrics |= {EPSILON: spent[envoy]}
        yield {"round": record["round"], "envoy": envoy, "state": state, "why": why.get(envoy, "")} | metrics | seconds


def _open_row(round_number: int, envoy: EnvoyProgress) -> dict[str, Any]:
    known = envoy.model_dump(exclude={"name", "values"}, exclude_defaults=True)
    return {"round": round_number, "envoy": envoy.name, "state": envoy.state, "why": envoy.why} | known


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


def shown_columns(records: Sequence[Record], metric: str | None) -> list[str]:
    """Return the columns that are shown of a history, as a screen is narrow: what an experiment is judged by.

    They are the validation `metric` that chooses the best model, losses of validation and training, how many updates
    counted, seconds and bytes. Without a metric all columns are shown.
    """
    if metric is None:
        return [name for name in table_columns(records) if name != NOTES]
    wanted = {metric, metric + MEAN_OF_SITES, "loss", "train loss", EPSILON}
    columns = [name for name in table_columns(records) if name in wanted]
    return ["round", *columns, "envoys", "seconds", "sent"]


def shown_row(record: Record, columns: Sequence[str]) -> list[str]:
    """Return the values of `columns` as people read them."""
    row = table_row(record) | {"envoys": updates_that_counted(record)}
    return [show_value(name, row.get(name)) for name in columns]


def rounds_done(round_number: int, rounds: int) -> str:
    """Return how far an experiment is; one more round than was asked for validates the last model.

    >>> rounds_done(3, 20), rounds_done(21, 20)
    ('3 of 20', '20 of 20')
    """
    return f"{min(round_number, rounds)} of {rounds}"


def updates_that_counted(record: Record) -> str | None:
    """Return how many of a round's participants have an update that counts, as "2 of 3"."""
    if "counted" not in record and "envoys" not in record:
        return None
    counted = record["counted"] if "counted" in record else len(record["envoys"])
    shown = f"{counted} of {counted + len(record.get('refused', ())) + len(record.get('missing', ()))}"
    if record.get("secure"):
        # A column is narrow: "curious" or "malicious", as docs/secure-aggregation.md has them.
        shown += f", secure ({SecureSum.model_validate(record['secure']).against.split()[1]})"
    return shown


def show_value(name: str, value: Any) -> str:
    """Return the value of a column as people read it."""
    if value is None:
        return "-"
    if name == "sent":
        return show_bytes(value)
    if name == "seconds":
        return show_seconds(value)
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3g}"


def show_seconds(seconds: float) -> str:
    """Return a duration as people read it.

    >>> show_seconds(0.36), show_seconds(41.2), show_seconds(200), show_seconds(7500)
    ('0.4 s', '41 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def show_bytes(n_bytes: int) -> str:
    """Return a number of bytes as people read it.

    >>> show_bytes(512), show_bytes(24_310), show_bytes(3_340_000), show_bytes(151_200_000)
    ('512 B', '24.3 kB', '3.34 MB', '151 MB')
    """
    if n_bytes < 1000:
        return f"{n_bytes} B"
    size, unit = next((n_bytes / n, unit) for n, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if n_bytes >= n)
    return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f} {unit}"


def table_columns(records: Sequence[Record]) -> list[str]:
    """Return the names of all rows' values: a later round may have metrics that the first had not."""
    metrics: set[str] = set()
    trained: set[str] = set()
    for record in records:
        validated, learned = _metrics(record)
        metrics.update(validated)
        trained.update(learned)
    notes = [NOTES] if any(record.get("notes") for record in records) else []
    spent = [EPSILON] if any(record.get("privacy") for record in records) else []
    return ["round", *sorted(metrics), *sorted(trained), *spent, "seconds", "sent", *notes]


def _metrics(record: Record) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of validation and of training, by the names of their columns."""
    trained = {f"train {name}": value for name, value in _columns(record, TRAIN).items()}
    aggregated = {name.replace("_", " "): value for name, value in record.get("aggregation", {}).items()}
    return _columns(record, VALIDATE), trained | aggregated


def _columns(record: Record, task: str) -> dict[str, float]:
    metrics = sorted((name, value) for name, value in record["metrics"].get(task, {}).items() if "/" not in name)
    return {shown_name(record, task, name): value for name, value in metrics}


def columns_of(history: "pd.DataFrame", metric: str) -> list[str]:
    """Return the columns of `to_frame` that have the validation `metric`: exact, as a mean of sites, both, or none."""
    return [name for name in (metric, metric + MEAN_OF_SITES) if name in history.columns]


def name_of_scores(records: Sequence[Record], metric: str) -> str:
    """Return the name of the validation `metric` for what shows all its values; one mean of sites makes it one."""
    return max((shown_name(record, VALIDATE, metric) for record in records), default=metric, key=len)


def scores_by_round(records: Sequence[Record], metric: str) -> dict[int, float]:
    """Return the validation `metric` of the rounds in which it was measured, and defined."""
    validated = {record["round"]: record["metrics"].get(VALIDATE, {}) for record in records}
    return {number: metrics[metric] for number, metrics in validated.items() if metric in metrics}
