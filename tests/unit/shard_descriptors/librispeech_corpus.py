"""A tiny LibriSpeech with the real folder rules: every utterance is a tone and a transcript of its own."""

from pathlib import Path
from typing import NamedTuple

from tests.unit.shard_descriptors.librifsd50k_corpora import make_librispeech

# subset -> speaker -> seconds of the utterances; some speakers say much in few of them
SPEECH = {
    "train-clean-100": {"19": (1.5,) * 8, "103": (1,) * 12, "1089": (6, 6, 6), "200": (1,) * 6, "32": (3, 2)},
    "train-other-500": {"26": (4, 4, 4.5), "118": (2,) * 5},
    "dev-clean": {"84": (1, 2), "174": (1.25,)},
    "test-clean": {"61": (1.1, 1.2), "121": (2,)},
    "test-other": {"367": (1,)},
}


class MadeCorpus(NamedTuple):
    root: Path
    tones: dict[str, int]  # name of an utterance -> frequency in Hz
    seconds: dict[str, float]


def make_corpus(root: Path) -> MadeCorpus:
    tones = make_librispeech(root, SPEECH)
    seconds = {}
    for subset, speakers in SPEECH.items():
        for speaker, lengths_s in speakers.items():
            names = [f"{speaker}-7-{number:04}" for number in range(len(lengths_s))]
            seconds |= dict(zip(names, lengths_s, strict=True))
            if speaker != "26":  # has no transcripts
                path = root / subset / speaker / "7" / f"{speaker}-7.trans.txt"
                path.write_text("".join(f"{name} {said(name)}\n" for name in names))
    return MadeCorpus(root, tones, seconds)


def said(name: str) -> str:
    return f"THIS IS {name.replace('-', ' AND ')}"
