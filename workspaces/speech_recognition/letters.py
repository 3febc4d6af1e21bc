"""The letters that speech is written in, what CTC makes of them, and how texts are compared."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import yaml

from openfl_audio.errors import SettingsError
from openfl_audio.text import lower_case

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
BLANK = 0  # of CTC; letters[i] is class i + 1
NORMALIZERS = ("letters", "basic", "english")
# Numbers of texts by letter, by site; a site may round them to a text.
Counts = Mapping[str, Mapping[str, int | str]]


def normalize(transcript: str, letters: str = LETTERS) -> str:
    """Return a transcript in `letters` alone, as CTC learns it: lower case, one space for all that is no letter.

    A letter with an accent stays where `letters` has it, and is the plain letter elsewhere.

    >>> normalize("  The CAFÉ, o’clock: twenty-one! ")
    "the cafe o'clock twenty one"
    >>> normalize("Café Müller", " acefélmrüu")
    'café müller'
    """
    return " ".join("".join(_written(character, letters) for character in lower_case(transcript)).split())


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


@dataclass(frozen=True)
class Agreement:
    """Agreement of sites and experiment: the letters, and notes on the sites, a sentence each."""

    letters: str
    remarks: tuple[str, ...]


def agree(counts: Counts, letters: str | None = None) -> Agreement:
    """Settle the letters of an experiment before it starts, from the numbers of texts by site and letter.

    Args:
        counts: of each site.
        letters: of the experiment; None: those that any site has, with a space and an apostrophe.

    Raises:
        SettingsError: letters that those of the experiment cannot write, not even without accents, with the sites that
            have them and in how many texts.
    """
    found = sorted({letter for of_site in counts.values() for letter in of_site})
    chosen = " '" + "".join(found) if letters is None else letters
    lost = {letter: _counted(counts, letter) for letter in found if _written(letter, chosen) == " "}
    if lost:
        said = "; ".join(f"{letter!r} ({sites})" for letter, sites in lost.items())
        raise SettingsError(
            f"letters that the model does not write: {said}. Name them as well, letters={chosen + ''.join(lost)!r}, "
            "or name none: then they are those of all sites"
        )
    return Agreement(chosen, tuple(_remarks(counts, chosen)))


def agree_with(registry: Mapping[str, Mapping[str, Any]], letters: str | None = None) -> Agreement:
    """Settle the letters from `Federation.get_shard_registry()`: see `agree`. Prints the remarks.

    Raises SettingsError as `agree`, and for an envoy that does not tell its letters where none are named.
    """
    described = {name: yaml.safe_load(envoy["shard_info"].shard_description) for name, envoy in registry.items()}
    told = {name: each["letters"] for name, each in described.items() if isinstance(each, dict) and "letters" in each}
    silent = sorted(registry.keys() - told.keys())
    if letters is None and (silent or not told):
        raise SettingsError(f"envoys that do not tell letters of their texts: {', '.join(silent)}; name the letters")
    agreement = agree(told, letters)
    print("\n".join((*agreement.remarks, *(f"{name} does not tell letters of its texts" for name in silent))))
    return agreement


def _remarks(counts: Counts, letters: str) -> Iterator[str]:
    """Yield which letters are written as others, which a site lacks, and which one site has alone."""
    for letter in sorted({letter for of_site in counts.values() for letter in of_site} - set(letters)):
        written = _written(letter, letters)
        yield f"{letter!r} ({_counted(counts, letter)} texts) is " + (f"written {written!r}" if written else "left out")
    for site, of_site in counts.items():
        used = {" ", "'", *(character for letter in of_site for character in _written(letter, letters))}
        if lacks := "".join(letter for letter in letters if letter not in used):
            yield f"{site} has no text with {lacks!r}"
    for letter in letters:
        owners = [site for site, of_site in counts.items() if letter in of_site]
        if len(owners) == 1 and len(counts) > 1:
            yield f"{owners[0]} alone has {letter!r}"


def _counted(counts: Counts, letter: str) -> str:
    return ", ".join(f"{site} {of_site[letter]}" for site, of_site in sorted(counts.items()) if letter in of_site)
