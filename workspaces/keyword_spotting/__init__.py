"""Keyword spotting: one second of speech, one of twelve labels."""

from pathlib import Path

# A Wav2Vec2 configuration that learns twelve words on a CPU in minutes, from a random start.
SMALL = Path(__file__).parent / "configs" / "wav2vec2_small.json"
