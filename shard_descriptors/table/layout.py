"""A site's table -> the recordings that it names: columns by the names that the settings give them."""

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.recordings import (
    KINDS,
    FileFinder,
    Listing,
    Recording,
    Target,
    read_split,
    window_problem,
)
from shard_descriptors.common.text import delimiter_of, read_columns, read_lines

# What a column may be; one of KINDS besides.
ROLES = ("path", "start", "end", "group", "split")
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
Row = Mapping[str, Any]


def read_table(table: Path, audio: Path, columns: Mapping[str, str], separator: str = "|") -> Listing:
    """Read a table, and find the files that it names.

    Args:
        table: a file with one of SUFFIXES.
        audio: the folder that paths in the table are relative to.
        columns: names of columns by what they are: `path`, one of `label`, `labels`, `number` and `text`, and where
            there are such columns `start` and `end` (in seconds), `group` and `split`.
        separator: what stands between several labels in one cell.

    Raises:
        CorpusError: no such table, a column that lacks, or a cell that cannot be read, with its line.
    """
    kind = check_columns(columns)
    if not audio.is_dir():
        raise CorpusError(f"audio_path: there is no folder {audio}")
    rows, decimal_comma = _read_rows(table)
    present = rows[0][1].keys() if rows else ()
    if lacks := [name for name in columns.values() if name not in present]:
        has = ", ".join(map(str, present)) or "no row"
        raise CorpusError(f"{table}: lacks the columns {', '.join(lacks)} of the settings; it has {has}")

    listing = Listing(str(table), kind)
    listing.columns = {
        str(name): [cell_text(row.get(name)) for _, row in rows] for name in present if name != columns[kind]
    }
    finder = FileFinder(audio)
    named: set[str] = set()
    for line, row in rows:
        where = f"{table}, line {line}"
        cells = {role: row.get(column) for role, column in columns.items()}
        path = cell_text(cells["path"])
        name = path if path and path not in named else f"{path or 'a row'} (line {line})"
        named.add(name)
        reason, file = None, finder.find(path) if path else None
        target = read_target(cells[kind], kind, separator, where, decimal_comma)
        if not path:
            reason = "has no path"
        elif file is None:
            reason = "is not there"
        elif target is None:
            reason = f"has no {kind}"
        elif "split" in columns and not cell_text(cells["split"]):
            reason = "has no split"
        if reason is None and file is not None and target is not None:
            recording = Recording(
                name=name,
                file=file,
                target=target,
                group=cell_text(cells.get("group")),
                split=read_split(cell_text(cells["split"]), where) if "split" in columns else "",
                start_s=read_number(cells.get("start"), where, decimal_comma) or 0.0,
                end_s=read_number(cells.get("end"), where, decimal_comma),
            )
            reason = window_problem(recording)
            if reason is None:
                listing.recordings.append(recording)
        if reason is not None:
            listing.left_out[name] = reason
    return listing


def check_columns(columns: Mapping[str, str]) -> str:
    """Return which kind of target the columns name. Raises CorpusError for columns that are not understood."""
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
        raise CorpusError(f"columns: {columns!r} should name columns, such as {{path: file, label: word}}")
    if unknown := [role for role in columns if role not in (*ROLES, *KINDS)]:
        raise CorpusError(f"columns: {', '.join(unknown)} is unknown; there are {', '.join((*ROLES, *KINDS))}")
    kinds = [kind for kind in KINDS if kind in columns]
    if "path" not in columns or len(kinds) != 1:
        raise CorpusError(f"columns: {dict(columns)} should have a path, and one of {', '.join(KINDS)}")
    return kinds[0]


def _read_rows(table: Path) -> tuple[list[tuple[int, Row]], bool]:
    """Return the rows with their lines, and whether numbers have a decimal comma."""
    suffix = table.suffix.casefold()
    if not table.is_file():
        raise CorpusError(f"data_path: there is no table {table}")
    if suffix in (".jsonl", ".ndjson"):
        return list(_read_json_lines(table)), False
    if suffix == ".parquet":
        return _read_parquet(table), False
    if suffix not in SUFFIXES:
        raise CorpusError(f"data_path: {table} is none of {', '.join(SUFFIXES)}; a sheet is saved as CSV UTF-8")
    rows: list[tuple[int, Row]] = [*read_columns(table, ())]
    # Where commas do not separate cells, spreadsheets write them into numbers.
    return rows, bool(rows) and delimiter_of(read_lines(table)[0][1]) != ","


def _read_json_lines(table: Path) -> Iterator[tuple[int, Row]]:
    columns: dict[str, None] = {}
    rows = []
    for line, content in read_lines(table):
        try:
            row = json.loads(content)
        except ValueError as error:
            raise CorpusError(f"{table}, line {line}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise CorpusError(f"{table}, line {line}: {content[:40]!r} should be an object, such as {{...}}")
        columns.update(dict.fromkeys(row))
        rows.append((line, row))
    # A row may lack what is empty in it.
    return ((line, {column: row.get(column) for column in columns}) for line, row in rows)


def _read_parquet(table: Path) -> list[tuple[int, Row]]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(table).to_pylist()
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{table} cannot be read as Parquet ({error})") from error
    return list(enumerate(rows, start=1))


def read_target(cell: Any, kind: str, separator: str, where: str, decimal_comma: bool) -> Target | None:
    """Return the target that a cell holds, or None if it is empty; several labels may be none at all."""
    if kind == "number":
        return read_number(cell, where, decimal_comma)
    if kind == "labels":
        parts = cell if isinstance(cell, list) else cell_text(cell).split(separator)
        return tuple(dict.fromkeys(label for label in map(cell_text, parts) if label))
    return cell_text(cell) or None


def read_number(cell: Any, where: str, decimal_comma: bool) -> float | None:
    """Return the number in a cell, None if it is empty. Raises CorpusError, with `where` it stands."""
    text = cell_text(cell)
    if not text:
        return None
    try:
        number = float(text.replace(",", ".", 1) if decimal_comma else text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{where}: {text!r} is no number, such as 2.5")
    return number


def cell_text(cell: Any) -> str:
    """Return a cell as text without space around it, in one Unicode form; an empty one as ""."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return unicodedata.normalize("NFC", str(cell)).strip()
