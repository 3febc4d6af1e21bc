"""What a shard descriptor raises.

ValueError
├── CorpusError  the corpus, or a parameter of the shard descriptor, cannot be used
└── AudioError   one audio file cannot be used
"""


class CorpusError(ValueError):
    """The corpus or a parameter cannot be used; the message says which, and what would be right."""


class AudioError(ValueError):
    """An audio file cannot be used; the message names the file and the fault."""
