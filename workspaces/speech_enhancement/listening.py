"""A model's estimates of clips, as WAV files to listen to."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch

from openfl_audio.files import replacing
from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.model import SudoRmRf
from workspaces.speech_enhancement.tasks import NOISES, enhance

FFT_SAMPLES, RANGE_DB = 512, 80.0


def separate_example(model: SudoRmRf, clips: Sources, item: int, noises: int, device: str) -> dict[str, np.ndarray]:
    """Return "mixture", "estimate" and "reference" of a clip with that many noises, 1 or 2: float32 (samples,) each."""
    sources = clips.whole(np.array([item]))
    mixture = sources[:, : 1 + noises].sum(dim=1)
    estimate = enhance(model, mixture, device)
    signals: dict[str, torch.Tensor] = {"mixture": mixture, "estimate": estimate, "reference": sources[:, 0]}
    return {name: signal[0].numpy() for name, signal in signals.items()}


def write_examples(model: SudoRmRf, clips: Sources, items: Iterable[int], folder: Path, device: str) -> list[Path]:
    """Write mixture, estimate and reference of `items`, with one noise and with two, as "0000_1_noise_estimate.wav".

    They are float32 at the rate of the clips, at the levels they have. Files of that name are replaced.
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
                    soundfile.write(temporary, signal, clips.sample_rate, format="WAV", subtype="FLOAT")
                paths.append(path)
    return paths


def write_tensorboard(wavs: Iterable[Path], folder: Path, round_number: int) -> None:
    """Add WAV files and their spectrograms to TensorBoard's files in `folder`, as of a round.

    Their tags are the names of the files. A file that goes beyond 1 is made as loud as can be.
    """
    # Loading it takes a second, which most workers never need.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for path in wavs:
            signal, sample_rate = soundfile.read(path, dtype="float32")
            peak = max(1.0, float(np.abs(signal).max()))
            writer.add_audio(path.stem, torch.from_numpy(signal / peak), round_number, sample_rate)
            writer.add_image(f"{path.stem}_spectrogram", spectrogram(signal), round_number)


def spectrogram(signal: np.ndarray) -> np.ndarray:
    """Return the power of a waveform (samples,) as a picture, uint8 (1, 257, frames).

    Low frequencies are at its bottom, and its scale of grey is the 80 dB below the largest power.
    """
    window = torch.hann_window(FFT_SAMPLES)
    spectrum = torch.stft(torch.from_numpy(signal), FFT_SAMPLES, FFT_SAMPLES // 4, window=window, return_complex=True)
    decibels = 20 * torch.log10(spectrum.abs().clamp(min=1e-8))
    grey = (decibels - decibels.max()).clamp(min=-RANGE_DB) / RANGE_DB + 1
    return (255 * grey).round().to(torch.uint8).flip(0).unsqueeze(0).numpy()
