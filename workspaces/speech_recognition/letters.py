"""The letters that speech is written in, and what CTC makes of them."""

import itertools
import re
import unicodedata

import torch

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
BLANK = 0  # of CTC; LETTERS[i] is class i + 1
CLASSES = 1 + len(LETTERS)


def normalize(transcript: str) -> str:
    """Return a transcript in LETTERS alone: lower case, accents left off, one space for all that is no letter.

    >>> normalize("  The CAFÉ, o’clock: twenty-one! ")
    "the cafe o'clock twenty one"
    """
    plain = unicodedata.normalize("NFKD", transcript).replace("’", "'").lower()
    letters = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(re.sub(r"[^a-z']", " ", letters).split())


def encode(text: str) -> list[int]:
    """Return the classes of a normalized text.

    >>> encode("a b")
    [3, 1, 4]
    """
    return [LETTERS.index(letter) + 1 for letter in text]


def frames_needed(text: str) -> int:
    """Return the frames that CTC needs: one a letter, and a blank between two that are the same.

    >>> frames_needed("hello")
    6
    """
    return len(text) + sum(first == second for first, second in itertools.pairwise(text))


def decode(classes: torch.Tensor) -> str:
    """Return the text of the best class of each frame (frames,): repetitions are one, then blanks are left out.

    >>> decode(torch.tensor([0, 3, 3, 0, 3, 1, 1, 0, 4, 0]))
    'aa b'
    """
    kept = [label for label in torch.unique_consecutive(classes).tolist() if label != BLANK]
    return " ".join("".join(LETTERS[label - 1] for label in kept).split())
