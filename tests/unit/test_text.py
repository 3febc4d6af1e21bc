"""Text comes out the same from every encoding that its bytes tell, and others are refused by name."""

import codecs

import pytest

from openfl_audio.errors import TextError
from openfl_audio.text import read_text

TEXT = "Müller\nline two\n"
MARKED = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16 little-endian": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16 big-endian": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "CR": TEXT.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("content", MARKED.values(), ids=MARKED)
def test_text_is_read_in_the_encoding_that_its_bytes_tell(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == TEXT


REFUSED = {
    "Latin-1": (b"one\ncaf\xe9\n", r"a.txt is not UTF-8 \(byte 0xe9 in line 2\): save it as UTF-8"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "a.txt is not UTF-8"),
    "ASCII in UTF-16 without a mark": ("yes\n".encode("utf-16-le"), "a.txt holds zero bytes, as UTF-16 without"),
    "half a character of UTF-16": (codecs.BOM_UTF16_LE + b"a", "a.txt begins with the mark of UTF-16-LE and is not"),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_text_whose_encoding_would_have_to_be_guessed_is_refused(tmp_path, content, sentence):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextError, match=sentence):
        read_text(tmp_path / "a.txt")
