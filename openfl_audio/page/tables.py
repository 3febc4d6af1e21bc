"""The history of an experiment as CSV, for spreadsheets: none of its cells is taken for a formula."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from pydantic_core import from_json

from openfl_audio.training.history import Record

# Spreadsheets take cells that begin with these for formulas (OWASP, CSV injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def safe_cell(value: Any) -> Any:
    """Return a value as it may stand in a cell: a text that would be a formula begins with an apostrophe.

    >>> safe_cell("=1+1"), safe_cell(-0.5), safe_cell("accuracy"), safe_cell(None)
    ("'=1+1", -0.5, 'accuracy', '')
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA_STARTS):
        return f"'{value}"
    return "" if value is None else value


async def records_of(history: AsyncIterator[bytes]) -> AsyncIterator[Record]:
    """Yield the records of rounds among the messages of a history."""
    async for message in history:
        content = from_json(message)  # twice as fast as the standard library: a history may have a hundred megabytes
        if "envoys" in content:
            yield content


async def csv_lines(
    records: AsyncIterator[Record],
    columns: list[str],
    rows_of: Callable[[Record], Iterable[dict[str, Any]]],
) -> AsyncIterator[str]:
    """Yield a table in CSV, with the rows that `rows_of` makes of each round's record."""
    yield _line(columns)
    async for record in records:
        for row in rows_of(record):
            yield _line([row.get(column) for column in columns])


def _line(cells: Iterable[Any]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([safe_cell(cell) for cell in cells])
    return file.getvalue()
