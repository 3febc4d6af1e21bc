"""Sounds as a microphone in a room hears them: every recordist has a room, a noise floor and a level of their own."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from openfl_audio.testing.corpora.noises import coloured_noise


@dataclass(frozen=True)
class Recording:
    """The character of one person's recordings.

    Attributes:
        low_cut_hz, high_cut_hz: corners of the microphone's pass band.
        rt60_s: time in which the room's reverberation falls by 60 dB.
        wet: power of the reverberation relative to the direct sound.
        noise_exponent: colour of the noise floor, as in `coloured_noise`.
        snr_db: power of the sound relative to that noise.
        peak_db: largest sample relative to full scale.
    """

    low_cut_hz: float
    high_cut_hz: float
    rt60_s: float
    wet: float
    noise_exponent: float
    snr_db: float
    peak_db: float


def record(waveform: np.ndarray, recording: Recording, rng: np.random.Generator, *, sample_rate: int) -> np.ndarray:
    """The sound as it was recorded, within [-1, 1]; level and signal-to-noise ratio differ a little each time.

    Shape: (samples,) -> (samples,).
    """
    band = butter(2, [recording.low_cut_hz, recording.high_cut_hz], "bandpass", fs=sample_rate, output="sos")
    recorded = sosfilt(band, reverberate(waveform, recording, rng, sample_rate=sample_rate))
    noise = coloured_noise(rng, len(waveform), exponent=recording.noise_exponent, sample_rate=sample_rate)
    noise *= np.sqrt(np.mean(recorded**2)) * 10 ** (-(recording.snr_db + rng.normal(0, 2)) / 20)
    recorded += noise
    peak = 10 ** (min(-0.5, recording.peak_db + rng.normal(0, 2)) / 20)
    return peak * recorded / np.abs(recorded).max()


def reverberate(
    waveform: np.ndarray, recording: Recording, rng: np.random.Generator, *, sample_rate: int
) -> np.ndarray:
    """Add noise that decays exponentially as the room's answer (Moorer, "About this reverberation business", 1979)."""
    seconds = np.arange(int(recording.rt60_s * sample_rate)) / sample_rate
    answer = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / recording.rt60_s)
    answer *= np.sqrt(recording.wet / np.sum(answer**2))
    return waveform + fftconvolve(waveform, answer)[: len(waveform)]
