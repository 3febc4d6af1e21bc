"""Lists, tables and JSON as spreadsheets and editors leave them."""

import codecs

import pytest

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.text import read_columns, read_json, read_lines, read_rows


def test_lines_come_without_blanks_marks_and_white_space(tmp_path):
    (tmp_path / "list.txt").write_bytes(codecs.BOM_UTF8 + "one\r\n\r\n\u00a0two \n".encode())
    assert read_lines(tmp_path / "list.txt") == [(1, "one"), (3, "two")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_may_have_any_delimiter_that_spreadsheets_write(tmp_path, delimiter):
    rows = [["fname", "labels", "split"], ["100", '"Bark,Rain; x"', "train"]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    (tmp_path / "dev.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    found = read_columns(tmp_path / "dev.csv", ("fname", "labels"))
    assert found == [(2, {"fname": "100", "labels": "Bark,Rain; x", "split": "train"})]


def test_a_row_that_is_too_short_and_a_column_that_lacks_are_named(tmp_path):
    (tmp_path / "dev.csv").write_text("fname,labels\n100,Bark\n101\n")
    with pytest.raises(CorpusError, match=r"dev.csv, line 3: has 1 cells, and the header has 2"):
        read_columns(tmp_path / "dev.csv", ("fname",))
    with pytest.raises(CorpusError, match=r"dev.csv: lacks the columns split"):
        read_columns(tmp_path / "dev.csv", ("fname", "split"))


def test_every_reader_names_a_file_that_is_no_utf_8_or_not_there(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"caf\xe9")
    for read in (read_lines, read_rows, read_json):
        with pytest.raises(CorpusError, match=r"a.csv is not UTF-8"):
            read(tmp_path / "a.csv")
        with pytest.raises(CorpusError, match=r"gone.csv cannot be read \(No such file"):
            read(tmp_path / "gone.csv")


def test_json_may_have_a_mark_and_what_is_none_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(CorpusError, match=r"b.json: is not JSON"):
        read_json(tmp_path / "b.json")
