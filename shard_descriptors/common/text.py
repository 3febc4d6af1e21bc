"""Read the lists, tables and JSON of a corpus. Every corpus reads its text here, and each fault names the file."""

import csv
import json
from pathlib import Path
from typing import Any

from openfl_audio.errors import TextError
from openfl_audio.text import read_text
from shard_descriptors.common.errors import CorpusError

_DELIMITERS = (",", ";", "\t")  # Excel writes semicolons where the comma is the decimal mark


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a file that are not blank, each with its number from 1 and without white space around it.

    Raises:
        CorpusError: the file cannot be read, or is in no encoding that can be told.
    """
    stripped = ((number, line.strip()) for number, line in enumerate(_read(path).split("\n"), start=1))
    return [(number, line) for number, line in stripped if line]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows of a table, each with the number of the line it ends in, cells without white space around them.

    Commas, semicolons or tabs separate cells: whichever makes the most of the first line.

    Raises:
        CorpusError: as `read_lines`, or a row that is no row of a table.
    """
    lines = _read(path).split("\n")
    first = next((line for line in lines if line.strip()), "")
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter_of(first))
    try:
        found = [(rows.line_num, [cell.strip() for cell in row]) for row in rows]
    except csv.Error as error:
        raise CorpusError(f"{path}, line {rows.line_num}: is no row of a table ({error})") from error
    return [(number, row) for number, row in found if any(row)]


def delimiter_of(line: str) -> str:
    """Return what separates the cells of a line: whichever of comma, semicolon and tab makes the most of it.

    >>> delimiter_of("file;word;level, dB")
    ';'
    """
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([line], delimiter=mark), ())))


def read_columns(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Read the rows below a header, as cells by column, each with its line.

    Raises:
        CorpusError: as `read_rows`, a column lacks, or a row is shorter than the header.
    """
    rows = read_rows(path)
    header = rows[0][1] if rows else []
    if lacks := [column for column in columns if column not in header]:
        raise CorpusError(f"{path}: lacks the columns {', '.join(lacks)}")
    for number, row in rows[1:]:
        if len(row) < len(header):
            raise CorpusError(f"{path}, line {number}: has {len(row)} cells, and the header has {len(header)}")
    return [(number, dict(zip(header, row, strict=False))) for number, row in rows[1:]]


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises CorpusError as `read_lines` does, and for what is no JSON."""
    try:
        return json.loads(_read(path))
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path}: is not JSON ({error})") from error


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except TextError as error:
        raise CorpusError(str(error)) from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror})") from error
