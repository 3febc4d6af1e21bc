"""Utterances that can be read without a language: a letter is a tone, and a space is silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from workspaces.speech_recognition.model import Recognizer, create_recognizer

TINY: dict[str, Any] = {
    "attention_dropout": 0.0, "activation_dropout": 0.0, "hidden_dropout": 0.0, "feat_proj_dropout": 0.0,
    "conv_dim": [8, 16, 24], "conv_kernel": [32, 9, 4], "conv_stride": [16, 5, 4], "conv_bias": True,
    "feat_extract_norm": "layer", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
    "num_hidden_layers": 1, "num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16,
    "num_feat_extract_layers": 3,
}  # fmt: skip
LETTER_SAMPLES = 1_600


class Spoken:
    """A split of a shard, with the members that one of LibriSpeech has."""

    def __init__(self, transcripts: list[str]) -> None:
        self.transcripts = transcripts
        self.names = [f"clip-{i}" for i in range(len(transcripts))]
        self.speakers = ["first" if i % 2 else "second" for i in range(len(transcripts))]
        self.num_samples = np.array([LETTER_SAMPLES * max(len(text), 1) for text in transcripts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.transcripts)

    def read_waveform(self, index: int) -> np.ndarray:
        text, generator = self.transcripts[index].lower() or " ", np.random.default_rng(index)
        tones = [0.0 if letter == " " else 300 * 1.5 ** (ord(letter) - ord("a")) for letter in text]
        phase = 2 * np.pi * np.cumsum(np.repeat(tones, LETTER_SAMPLES)) / 16_000
        return (0.3 * np.sin(phase) + 0.01 * generator.normal(size=len(phase))).astype(np.float32)


class Shard:
    def __init__(self, train: list[str], validation: list[str]) -> None:
        self.transcripts = {"train": train, "validation": validation}

    def get_dataset(self, split: str) -> Spoken:
        return Spoken(self.transcripts[split])


def draw_texts(count: int, seed: int) -> list[str]:
    """Words of a, b, c and d in which no letter follows itself."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = [
            generator.permutation(list("ABCD"))[: generator.integers(2, 5)] for _ in range(generator.integers(1, 4))
        ]
        texts.append(" ".join("".join(word) for word in words))
    return texts


def tiny_recognizer(folder: Path, seed: int = 0, frozen: bool = False, **changes: Any) -> Recognizer:
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY | changes))
    return create_recognizer(config=path, seed=seed, frozen=frozen)
