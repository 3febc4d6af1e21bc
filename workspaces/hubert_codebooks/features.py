"""Features that k-means clusters: MFCC, or hidden states of a trained model; 50 frames a second, as many as HuBERT has.

Hsu et al., "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units", 2021, arXiv
2106.07447, section IV-B: 39-dimensional MFCC in the first iteration, a layer of the first model in the second.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torchaudio
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.errors import OpenFLAudioError
from workspaces.hubert.model import HOP_LENGTH, RECEPTIVE_FIELD, SAMPLE_RATE, Hubert, load_model

N_MELS = 40
STATIC = 13  # coefficients before deltas


class FeatureError(OpenFLAudioError, ValueError):
    """Features that cannot be had, or do not fit their clip; the message says which."""


class Features(Protocol):
    """`features(waveform)`: float32 (samples,) -> float32 (frames, width). Equal names are equal features."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def __call__(self, waveform: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Mfcc:
    """Mel-frequency cepstral coefficients: 13, or 39 with their first and second differences in time.

    40 mel bands of 25 ms, every 20 ms, in dB; nothing is padded, so frame i hears the samples that HuBERT's frame i
    hears. As published, they are not normalised. Differences are regressions over five frames, torchaudio's
    `compute_deltas`.
    """

    width: Literal[13, 39] = 39

    @property
    def name(self) -> str:
        return f"mfcc{self.width}"

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        static = _mfcc()(torch.from_numpy(waveform))  # (13, frames)
        coefficients = [static]
        if self.width > STATIC:
            deltas = torchaudio.functional.compute_deltas(static)
            coefficients += [deltas, torchaudio.functional.compute_deltas(deltas)]
        return torch.cat(coefficients).T.contiguous().numpy()


class HiddenStates:
    """Outputs of one Transformer layer, from 1, of the model in a folder, or in `model` of the folder of a run."""

    def __init__(self, folder: str | Path, layer: int, device: str = "cpu") -> None:
        """Read the width of the layer. Raises FeatureError if there is no such layer."""
        path = Path(folder).expanduser().resolve()
        self._folder = path / "model" if (path / "model").is_dir() else path
        self._layer, self._device = layer, device
        states = self._layers(np.zeros(RECEPTIVE_FIELD, dtype=np.float32))
        if not 1 <= layer <= len(states):
            raise FeatureError(f"layer: {layer} should be from 1 to {len(states)}, the layers of {self._folder}")
        self.width: int = states[layer - 1].shape[-1]
        weights = (self._folder / "model.safetensors").read_bytes()
        self.name = f"layer{layer}-{hashlib.sha256(weights).hexdigest()[:8]}"

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        return self._layers(waveform)[self._layer - 1][0].float().cpu().numpy()

    def _layers(self, waveform: np.ndarray) -> list[torch.Tensor]:
        # A clip at a time: there is no padding that could make a difference.
        waveforms = torch.from_numpy(waveform)[None].to(self._device)
        lengths = torch.tensor([len(waveform)], device=self._device)
        with torch.inference_mode():
            return _model(self._folder, self._device).extract_features(waveforms, lengths)[0]


def draw_clips(clips: int, share: float, seed: int) -> np.ndarray:
    """Return which clips k-means is fitted on: ceil(share * clips) indices in their order, drawn by the seed.

    >>> draw_clips(10, 0.25, seed=0).tolist()
    [2, 4, 6]
    """
    return np.sort(np.random.default_rng(seed).permutation(clips)[: int(np.ceil(share * clips))])


def read_frames(
    dataset: ShardDataset,
    features: Features,
    indices: np.ndarray,
    folder: str | Path,
    on_clip: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the frames of some clips of a shard, float32 (frames, width), in a file that is mapped into memory.

    Files in `folder` are named after what is in them: frames that are there are not computed again, and a run that was
    stopped resumes after its last clip.

    Raises:
        AudioError: a file that is broken.
        FeatureError: a clip with another number of frames than HuBERT has for it, by name.
    """
    lengths = dataset.num_frames[indices]
    names = [dataset.names[i] for i in indices]
    contents = f"{features.name} {names} {lengths.tolist()}".encode()
    path = Path(folder) / f"{features.name}-{hashlib.sha256(contents).hexdigest()[:16]}.f32"

    def make(position: int) -> np.ndarray:
        return compute_frames(dataset, int(indices[position]), features)

    write_clips(path, make, lengths, features.width * 4, on_clip)
    return np.memmap(path, "<f4", "r", shape=(int(lengths.sum()), features.width))


def compute_frames(dataset: ShardDataset, index: int, features: Features) -> np.ndarray:
    """Return the frames of one clip, float32 (frames, width), checked. Raises as `read_frames` does."""
    frames = features(dataset.read_waveform(index))
    expected = (int(dataset.num_frames[index]), features.width)
    if frames.shape != expected:
        raise FeatureError(
            f"{dataset.names[index]}: {features.name} has frames of shape {frames.shape}, and HuBERT makes {expected} "
            f"of its {dataset.num_samples[index]:,} samples"
        )
    return frames


def write_clips(
    path: Path,
    make: Callable[[int], np.ndarray],
    lengths: Sequence[int] | np.ndarray,
    row_bytes: int,
    on_clip: Callable[[], None] = lambda: None,
) -> None:
    """Write the rows that `make(i)` gives for clip i to `path`, one clip after the other.

    A file that is complete is left as it is. An incomplete one lies beside it, and is resumed after its last whole
    clip; `lengths`, in rows of `row_bytes`, tell where that is. `on_clip` is called for each clip, also for those that
    are there.
    """
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64)) * row_bytes
    if path.is_file():
        for _ in ends:
            on_clip()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `files.replacing`, which removes what an interrupted process wrote: hours, from which this one resumes.
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("ab") as file:
        done = int(np.searchsorted(ends, file.tell(), side="right"))
        file.truncate(ends[done - 1] if done else 0)
        for clip in range(len(ends)):
            if clip >= done:
                file.write(make(clip).tobytes())
            on_clip()
    partial.rename(path)


# A transform costs more to build than to use; a model is the node's one.
@lru_cache(maxsize=1)
def _mfcc() -> torchaudio.transforms.MFCC:
    windows = {"n_fft": RECEPTIVE_FIELD, "win_length": RECEPTIVE_FIELD, "hop_length": HOP_LENGTH, "center": False}
    return torchaudio.transforms.MFCC(SAMPLE_RATE, STATIC, melkwargs=windows | {"n_mels": N_MELS})


@lru_cache(maxsize=1)
def _model(folder: Path, device: str) -> Hubert:
    return load_model(folder).to(device)
