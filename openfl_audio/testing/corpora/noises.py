"""Noise by numpy."""

import numpy as np

NOISES = ("white_noise", "pink_noise", "brown_noise", "mains_hum", "clicks", "babble")


def coloured_noise(rng: np.random.Generator, n_samples: int, *, exponent: float, sample_rate: int) -> np.ndarray:
    """Gaussian noise of unit power whose power falls as 1 / frequency ** exponent. Shape: (n_samples,).

    Exponent 0 is white, 1 is pink and 2 is brown noise; nothing below 20 Hz.
    """
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    frequencies_hz = np.fft.rfftfreq(n_samples, 1 / sample_rate)
    gain = np.where(frequencies_hz < 20, 0, np.maximum(frequencies_hz, 20) ** (-exponent / 2))
    noise = np.fft.irfft(spectrum * gain, n_samples)
    return noise / np.sqrt(np.mean(noise**2))


def make_noise(kind: str, n_samples: int, rng: np.random.Generator, *, sample_rate: int) -> np.ndarray:
    """One of `NOISES`, of any scale. Shape: (n_samples,)."""
    exponents = {"white_noise": 0.0, "pink_noise": 1.0, "brown_noise": 2.0}
    if kind in exponents:
        return coloured_noise(rng, n_samples, exponent=exponents[kind], sample_rate=sample_rate)
    seconds = np.arange(n_samples) / sample_rate
    noise = 0.1 * coloured_noise(rng, n_samples, exponent=1, sample_rate=sample_rate)
    if kind == "mains_hum":
        mains_hz = rng.choice([50, 60])
        for harmonic in range(1, 13):
            phase = rng.uniform(0, 2 * np.pi)
            gain = rng.uniform(0, 1) / harmonic
            noise += gain * np.sin(2 * np.pi * mains_hz * harmonic * seconds + phase)
    elif kind == "clicks":
        clicks = np.zeros(n_samples)
        places = rng.integers(0, n_samples, size=int(rng.uniform(3, 15) * seconds[-1]))
        clicks[places] = rng.uniform(-20, 20, size=len(places))
        decay = np.exp(-np.arange(400) / rng.uniform(5, 80))
        noise += np.convolve(clicks, decay)[:n_samples]
    elif kind == "babble":
        # Far-away talkers: noise in the bands of vowels that swells a few times a second.
        for _ in range(8):
            voice = coloured_noise(rng, n_samples, exponent=1, sample_rate=sample_rate)
            voice *= np.sin(2 * np.pi * rng.uniform(300, 2500) * seconds)
            syllables_hz, phase = rng.uniform(2, 6), rng.uniform(0, 2 * np.pi)
            noise += voice * np.clip(np.sin(2 * np.pi * syllables_hz * seconds + phase), 0, 1)
    else:
        raise ValueError(f"unknown noise {kind!r}, known are {', '.join(NOISES)}")
    return noise
