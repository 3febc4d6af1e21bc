"""Errors of shard descriptors, and how their messages name many things at once.

OpenFLAudioError, ValueError
├── CorpusError  the corpus, or a parameter of the shard descriptor, cannot be used
└── AudioError   one audio file cannot be used
"""

from collections.abc import Iterable

from openfl_audio.errors import OpenFLAudioError


class CorpusError(OpenFLAudioError, ValueError):
    """The corpus or a parameter cannot be used; the message says which, and what would be right."""


class AudioError(OpenFLAudioError, ValueError):
    """An audio file cannot be used; the message names the file and the fault."""


def first_names(names: Iterable[str], at_most: int = 3) -> str:
    """Return the first names, and how many more there are.

    >>> first_names(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - at_most:,} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
