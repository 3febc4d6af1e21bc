"""Clips of tones, held in memory, with the members that a shard of LibriSpeech has; and small models to hear them."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from workspaces.hubert.data import Batch
from workspaces.hubert.model import Hubert, count_frames, create_hubert

CLUSTERS = 8
SEGMENT = 40  # frames of one tone
TINY: dict[str, Any] = {
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "conv_bias": True,
    "conv_dim": [16, 24, 32],
    "conv_kernel": [32, 9, 4],
    "conv_stride": [16, 5, 4],
    "do_stable_layer_norm": False,
    "feat_extract_norm": "layer",
    "feat_proj_dropout": 0.0,
    "hidden_dropout": 0.0,
    "hidden_size": 32,
    "intermediate_size": 64,
    "layerdrop": 0.0,
    "num_attention_heads": 2,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 16,
    "num_hidden_layers": 2,
}


class Tones:
    """Clip i has `lengths[i]` samples. Every 40 frames the tone changes; the target is the tone, from 0 to 7."""

    targets_info: ClassVar[dict[str, Any] | None] = {"codebook": "central", "clusters": CLUSTERS, "feature": "tones"}

    def __init__(self, lengths: list[int]) -> None:
        self.num_samples = np.array(lengths, dtype=np.int64)
        self.names = [f"clip-{i}" for i in range(len(lengths))]

    def __len__(self) -> int:
        return len(self.num_samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        n, generator = int(self.num_samples[index]), np.random.default_rng(index)
        frames = count_frames(n)
        tones = generator.integers(CLUSTERS, size=frames // SEGMENT + 2)
        of_samples = np.repeat(tones, SEGMENT * 320)[:n]
        phase = 2 * np.pi * np.cumsum(200 * 1.4**of_samples) / 16_000
        waveform = 0.3 * np.sin(phase) + 0.02 * generator.normal(size=n)
        return waveform.astype(np.float32), np.repeat(tones, SEGMENT)[:frames]


class Shard:
    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def get_dataset(self, split: str) -> Tones:
        return Tones(self.lengths if split == "train" else self.lengths[:3])


def tiny_hubert(folder: Path, clusters: int = CLUSTERS, seed: int = 0, **changes: Any) -> Hubert:
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY | changes))
    return create_hubert(path, clusters, final_dim=16, seed=seed)


def batch_of(num_samples: list[int], seed: int = 0) -> Batch:
    """Noise, padded to the longest, with random targets, and every third frame masked."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(num_samples)
    frames = count_frames(lengths)
    waveforms, targets = (
        torch.zeros(len(lengths), int(lengths.max())),
        torch.zeros(len(lengths), int(frames.max())).long(),
    )
    mask = torch.zeros(targets.shape, dtype=torch.bool)
    for row, (samples, n) in enumerate(zip(num_samples, frames.tolist(), strict=True)):
        waveforms[row, :samples] = 0.1 * torch.randn(samples, generator=generator)
        targets[row, :n] = torch.randint(CLUSTERS, (n,), generator=generator)
        mask[row, :n] = torch.arange(n) % 3 == 0
    return Batch(waveforms, lengths, frames, targets, mask)


def clips_of(batch: Batch) -> list[Batch]:
    """Each clip of a batch as a batch of its own, without padding."""
    return [
        Batch(
            batch.waveforms[i : i + 1, : batch.lengths[i]],
            batch.lengths[i : i + 1],
            batch.frames[i : i + 1],
            batch.targets[i : i + 1, : batch.frames[i]],
            batch.mask[i : i + 1, : batch.frames[i]],
        )
        for i in range(len(batch.lengths))
    ]
