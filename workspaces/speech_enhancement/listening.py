"""A model's estimates of clips, as WAV files to listen to."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch

from openfl_audio.files import replacing
from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.model import SAMPLE_RATE, SudoRmRf
from workspaces.speech_enhancement.tasks import NOISES, enhance


def separate_example(model: SudoRmRf, clips: Sources, item: int, noises: int, device: str) -> dict[str, np.ndarray]:
    """Return "mixture", "estimate" and "reference" of a clip with that many noises, 1 or 2: float32 (samples,) each."""
    sources = clips.whole(np.array([item]))
    mixture = sources[:, : 1 + noises].sum(dim=1)
    estimate = enhance(model, mixture, device)
    signals: dict[str, torch.Tensor] = {"mixture": mixture, "estimate": estimate, "reference": sources[:, 0]}
    return {name: signal[0].numpy() for name, signal in signals.items()}


def write_examples(model: SudoRmRf, clips: Sources, items: Iterable[int], folder: Path, device: str) -> list[Path]:
    """Write mixture, estimate and reference of `items`, with one noise and with two, as "0000_1_noise_estimate.wav".

    They are float32 at 16 kHz, at the levels they have. Files of that name are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    paths = []
    for item in items:
        for metric, noises in NOISES.items():
            for name, signal in separate_example(model, clips, item, noises, device).items():
                path = folder / f"{item:04}_{metric.removeprefix('si_sdri_')}_{name}.wav"
                with replacing(path, durable=False) as temporary:
                    # A sum of sources may go beyond 1, which 16 bits would cut off.
                    soundfile.write(temporary, signal, SAMPLE_RATE, format="WAV", subtype="FLOAT")
                paths.append(path)
    return paths
