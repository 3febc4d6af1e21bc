"""The history of an experiment, as a table for people: line by line in a terminal, live with a curve in Jupyter."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

VALIDATE, TRAIN = "aggregated_model_validate", "train"


def to_frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row a round: `round`, validation metrics, `train ...` metrics, `seconds`, and bytes `sent` by all envoys."""
    return pd.DataFrame([_row(record) for record in records])


def show_progress(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Show records as they come, and return them as `to_frame` does."""
    rows: list[dict[str, Any]] = []
    for record in records:
        rows.append(_row(record))
        if len(rows) == 1:
            print("  ".join(f"{name:>10}" for name in rows[0]), flush=True)
        print("  ".join(f"{_show(name, rows[-1].get(name)):>10}" for name in rows[0]), flush=True)
    return pd.DataFrame(rows)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    metrics = dict(sorted(record["metrics"].get(VALIDATE, {}).items()))
    trained = {f"train {name}": value for name, value in sorted(record["metrics"].get(TRAIN, {}).items())}
    return {"round": record["round"], **metrics, **trained, "seconds": record["seconds"], "sent": record["bytes_up"]}


def _show(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "sent":
        return f"{value / 1e6:.2f} MB"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
