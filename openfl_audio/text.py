"""Read text as people's machines write it, refuse bytes whose meaning would have to be guessed, and count letters."""

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from openfl_audio.errors import TextError

# UTF-32's mark begins with that of UTF-16, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def shorten_error(error: str) -> str:
    """Return the first line, which names the envoy, and the last, which of a traceback is the error itself."""
    lines = error.strip().splitlines()
    return "\n".join(lines if len(lines) < 2 else (lines[0], lines[-1]))


def lower_case(text: str) -> str:
    """Return a text in lower case, each letter with its accents as one character where there is one (NFKC)."""
    return unicodedata.normalize("NFKC", text).replace("’", "'").lower()


def count_letters(texts: Iterable[str]) -> dict[str, int]:
    """Return in how many of the texts each letter is, in lower case; marks that are written with a letter count as one.

    >>> count_letters(["Ça va?", "il a 2 ans"])
    {'a': 2, 'i': 1, 'l': 1, 'n': 1, 's': 1, 'v': 1, 'ç': 1}
    """
    counts = Counter(each for text in texts for each in set(lower_case(text)) if unicodedata.category(each)[0] in "LM")
    return {letter: counts[letter] for letter in sorted(counts)}


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a file in UTF-8, or in the encoding that its byte order mark tells (UTF-8, UTF-16, UTF-32).

    Returns:
        the text without the mark; each line ends in a newline alone, whether it was CRLF, CR or LF.

    Raises:
        TextError: neither, as a file in Latin-1 or in UTF-16 without a mark is.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    mark, encoding = next((pair for pair in _MARKS if content.startswith(pair[0])), (b"", "utf-8"))
    body = content[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"byte {body[error.start]:#04x} in line {body.count(bytes([10]), 0, error.start) + 1}"
        if mark:
            raise TextError(f"{path} begins with the mark of {encoding.upper()} and is not: {what}") from None
        raise TextError(f"{path} is not UTF-8 ({what}): save it as UTF-8") from None
    if "\0" in text:
        raise TextError(f"{path} holds zero bytes, as UTF-16 without a byte order mark does: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
