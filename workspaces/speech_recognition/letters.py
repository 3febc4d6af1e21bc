"""The letters that speech is written in, what CTC makes of them, and how texts are compared."""

import itertools
import re
import unicodedata
from functools import lru_cache

import torch

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
BLANK = 0  # of CTC; letters[i] is class i + 1
NORMALIZERS = ("letters", "basic", "english")


def normalize(transcript: str, letters: str = LETTERS) -> str:
    """Return a transcript in `letters` alone, as CTC learns it: lower case, one space for all that is no letter.

    A letter with an accent stays where `letters` has it, and is the plain letter elsewhere.

    >>> normalize("  The CAFÉ, o’clock: twenty-one! ")
    "the cafe o'clock twenty one"
    >>> normalize("Café Müller", " acefélmrüu")
    'café müller'
    """
    composed = unicodedata.normalize("NFKC", transcript).replace("’", "'").lower()
    return " ".join("".join(_written(character, letters) for character in composed).split())


def _written(character: str, letters: str) -> str:
    if character in letters:
        return character
    plain = unicodedata.normalize("NFKD", character)
    kept = "".join(part for part in plain if part in letters)
    # What decomposes into accents alone is part of the letter before.
    return kept or ("" if all(map(unicodedata.combining, plain)) else " ")


def comparable(text: str, normalizer: str, letters: str = LETTERS) -> str:
    """Return a text as it is scored; a reference and what was recognized are both brought to this form.

    Args:
        text: a transcript, or what was recognized.
        normalizer: "letters" as CTC writes them; "basic" and "english" are Whisper's (Radford et al., arXiv 2212.04356,
            appendix C): "english" also has numbers as digits and contractions written out, without its list of
            British spellings.
        letters: of "letters".
    """
    if normalizer == "letters":
        return normalize(text, letters)
    return " ".join(re.sub(r"\s+", " ", _whisper(normalizer)(text)).split())


@lru_cache
def _whisper(normalizer: str):
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return BasicTextNormalizer() if normalizer == "basic" else EnglishTextNormalizer({})


def encode(text: str, letters: str = LETTERS) -> list[int]:
    """Return the classes of a normalized text.

    >>> encode("a b")
    [3, 1, 4]
    """
    return [letters.index(letter) + 1 for letter in text]


def frames_needed(text: str) -> int:
    """Return the frames that CTC needs: one a letter, and a blank between two that are the same.

    >>> frames_needed("hello")
    6
    """
    return len(text) + sum(first == second for first, second in itertools.pairwise(text))


def decode(classes: torch.Tensor, letters: str = LETTERS) -> str:
    """Return the text of the best class of each frame (frames,): repetitions are one, then blanks are left out.

    >>> decode(torch.tensor([0, 3, 3, 0, 3, 1, 1, 0, 4, 0]))
    'aa b'
    """
    kept = [label for label in torch.unique_consecutive(classes).tolist() if label != BLANK]
    return " ".join("".join(letters[label - 1] for label in kept).split())
