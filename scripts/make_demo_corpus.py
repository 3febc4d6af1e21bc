"""Make a small corpus of synthetic audio in the layout of a published one.

    python scripts/make_demo_corpus.py --out corpora/words [--speakers 52]             # as Speech Commands
    python scripts/make_demo_corpus.py --layout librispeech --out corpora/sentences    # as LibriSpeech
    python scripts/make_demo_corpus.py --layout fsd50k --out corpora/sounds            # as FSD50K [--seconds 1.4]

Words and sentences are said by espeak-ng in many voices, sounds are made by numpy. The same seed gives the same bytes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

# `python scripts/make_demo_corpus.py` has scripts/ in its path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openfl_audio.errors import DemoCorpusError
from openfl_audio.testing.corpora.fsd50k import make_fsd50k
from openfl_audio.testing.corpora.librispeech import make_librispeech
from openfl_audio.testing.corpora.speech_commands import make_speech_commands

LAYOUTS: dict[str, Callable[..., bool]] = {
    "speech_commands": make_speech_commands,
    "librispeech": make_librispeech,
    "fsd50k": make_fsd50k,
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default="speech_commands", help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--speakers", type=int, help="number of voices of speech_commands (52)")
    parser.add_argument("--seconds", type=float, help="median length of a clip of fsd50k (1.4)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    options = parser.parse_args(arguments)
    if options.speakers is not None and options.layout != "speech_commands":
        parser.error(f"--speakers is the number of voices of speech_commands, and --layout is {options.layout}")
    if options.seconds is not None and options.layout != "fsd50k":
        parser.error(f"--seconds is the median length of a clip of fsd50k, and --layout is {options.layout}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    asked = {"n_speakers": options.speakers, "median_seconds": options.seconds}
    sizes = {name: size for name, size in asked.items() if size is not None}
    try:
        made = LAYOUTS[options.layout](options.out, seed=options.seed, **sizes)
    except DemoCorpusError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.out}: {'made' if made else 'is there already'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
