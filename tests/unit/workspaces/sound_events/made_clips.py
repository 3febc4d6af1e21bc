"""Clips whose classes can be heard, in memory."""

import numpy as np


class MadeClips:
    """Clips of 1 to 5 patches and one or two of `n_classes` classes: class c is a louder band of mels around 8 c.

    It has the members of the FSD50K dataset, in memory.
    """

    def __init__(self, n_clips: int, n_classes: int = 4, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        n_patches = generator.integers(1, 6, size=n_clips)
        self.clip = np.repeat(np.arange(n_clips), n_patches)
        self.clip_labels = np.zeros((n_clips, n_classes), np.float32)
        self.clip_labels[np.arange(n_clips), np.arange(n_clips) % n_classes] = 1
        self.clip_labels[generator.random((n_clips, n_classes)) < 0.1] = 1
        self.classes = [f"class {c}" for c in range(n_classes)]
        self.clip_names = [f"clip {i}" for i in range(n_clips)]
        self.uploaders = [f"uploader {i % 3}" for i in range(n_clips)]
        patches = generator.normal(-5, 1, size=(len(self.clip), 101, 96))
        for c in range(n_classes):
            patches[:, :, 8 * c : 8 * c + 6] += 1.5 * self.clip_labels[self.clip, c, None, None]
        self._patches = patches.astype(np.float32)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, index: int):
        return self._patches[index], self.clip_labels[self.clip[index]]

    def patches(self, indices: np.ndarray) -> np.ndarray:
        self.read.extend(indices.tolist())
        return self._patches[indices]
