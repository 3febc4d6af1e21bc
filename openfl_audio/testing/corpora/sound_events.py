"""Everyday sounds by numpy: one function for every class, and no two calls that sound the same.

Each takes a generator and a number of samples at 44.1 kHz and returns a waveform of any scale that lasts that long,
starting with the sound itself. Voices are a source and a filter (Fant, "Acoustic theory of speech production", 1960)
with the vowels of Peterson and Barney ("Control methods used in a study of the vowels", JASA 24, 1952).
"""

from collections.abc import Callable

import numpy as np
from scipy.signal import butter, iirpeak, lfilter, sosfilt

from openfl_audio.testing.corpora.noises import coloured_noise

SAMPLE_RATE = 44_100

# The first three formants of ten vowels in Hz, means of 33 men; those of women lie about a sixth higher.
VOWELS_HZ = (
    (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440),
    (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390), (490, 1350, 1690),
)  # fmt: skip
WOMEN_TO_MEN = 1.17
# Partials of a tuned church bell relative to its strike note, from hum to superquint, and how loud each is.
BELL_PARTIALS = ((0.5, 0.6), (1.0, 0.8), (1.2, 0.9), (1.5, 0.4), (2.0, 1.0), (2.5, 0.3), (2.67, 0.4), (3.0, 0.5))

Sound = Callable[[np.random.Generator, int], np.ndarray]


# What the sounds are made of


def samples(duration_s: float) -> int:
    """Return the number of samples of a duration, one at least."""
    return max(1, int(duration_s * SAMPLE_RATE))


def decay(n_samples: int, time_constant_s: float) -> np.ndarray:
    """Falls from 1 to 1/e in the time constant. Shape: (n_samples,)."""
    return np.exp(-np.arange(n_samples) / (time_constant_s * SAMPLE_RATE))


def swell(n_samples: int) -> np.ndarray:
    """Return an envelope from 0 to 1 and back to 0. Shape: (n_samples,)."""
    return np.sin(np.pi * (np.arange(n_samples) + 0.5) / n_samples)


def wander(rng: np.random.Generator, n_samples: int, rate_hz: float) -> np.ndarray:
    """A random curve through a new value, uniform in [-1, 1], `rate_hz` times a second. Shape: (n_samples,)."""
    n_values = int(n_samples * rate_hz / SAMPLE_RATE) + 2
    return np.interp(np.arange(n_samples) * rate_hz / SAMPLE_RATE, np.arange(n_values), rng.uniform(-1, 1, n_values))


def harmonics(pitch_hz: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """A tone of moving pitch; harmonic k + 1 has gain k and is left out above 18 kHz. Shape: that of `pitch_hz`."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
    tone = np.zeros(len(pitch_hz))
    for number, gain in enumerate(gains, start=1):
        tone += np.where(number * pitch_hz < 18_000, gain, 0) * np.sin(number * phase)
    return tone


def band_noise(rng: np.random.Generator, n_samples: int, low_hz: float, high_hz: float) -> np.ndarray:
    """White noise between two frequencies. Shape: (n_samples,)."""
    band = butter(2, [low_hz, high_hz], "bandpass", fs=SAMPLE_RATE, output="sos")
    return sosfilt(band, rng.standard_normal(n_samples))


def resonance(waveform: np.ndarray, frequency_hz: float, bandwidth_hz: float) -> np.ndarray:
    """Two poles and a gain of 1 at their frequency: a formant, or a body that rings. Shape: that of `waveform`."""
    return lfilter(*iirpeak(frequency_hz, frequency_hz / bandwidth_hz, fs=SAMPLE_RATE), waveform)


def repeat(
    rng: np.random.Generator, n_samples: int, event: Callable[[], np.ndarray], interval_s: tuple[float, float]
) -> np.ndarray:
    """The event at once and again after each interval until the clip ends, each time made anew. Shape: (n_samples,)."""
    waveform = np.zeros(n_samples)
    onset = 0
    while onset < n_samples:
        sound = event()[: n_samples - onset]
        waveform[onset : onset + len(sound)] += sound
        onset += samples(rng.uniform(*interval_s))
    return waveform


# Animals


def bark(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A dog that barks, each time with a falling pitch and a throat of its own. Shape: (n_samples,)."""
    pitch_hz, throat_hz, rough = rng.uniform(250, 800), rng.uniform(600, 1600), rng.uniform(0.2, 1)

    def one() -> np.ndarray:
        n = samples(rng.uniform(0.1, 0.25))
        glide = pitch_hz * rng.uniform(0.9, 1.1) * (1 + 0.5 * swell(n)) * np.linspace(1, 0.7, n)
        source = harmonics(glide, 0.8 ** np.arange(20)) + rough * rng.standard_normal(n)
        return (resonance(source, throat_hz, 300) + 0.1 * source) * swell(n) ** 0.5

    return repeat(rng, n_samples, one, (0.25, rng.uniform(0.4, 1.2)))


def meow(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A cat that meows, with vibrato. Shape: (n_samples,)."""
    pitch_hz = rng.uniform(350, 800)

    def one() -> np.ndarray:
        n = samples(rng.uniform(0.4, 1.1))
        vibrato = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(5, 9) * np.arange(n) / SAMPLE_RATE)
        glide = pitch_hz * rng.uniform(0.9, 1.1) * (0.8 + 0.4 * swell(n)) * vibrato
        source = harmonics(glide, 0.85 ** np.arange(20)) + 0.05 * rng.standard_normal(n)
        # The mouth opens and closes: from a low to a high formant and back.
        opening = swell(n)
        return (resonance(source, 900, 250) * (1 - opening) + resonance(source, 2200, 400) * opening) * opening**0.5

    return repeat(rng, n_samples, one, (0.8, 2.5))


def chirp_and_tweet(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A bird whose short calls sweep up or down. Shape: (n_samples,)."""
    centre_hz, sweep, beat_s = rng.uniform(2500, 6500), rng.uniform(-0.4, 0.4), rng.uniform(0.07, 0.2)

    def one() -> np.ndarray:
        n = samples(rng.uniform(0.03, 0.9 * beat_s + 0.03))
        return harmonics(centre_hz * rng.uniform(0.85, 1.15) * np.linspace(1 - sweep / 2, 1 + sweep / 2, n),
                         np.array([1, 0.1])) * swell(n)  # fmt: skip

    def phrase() -> np.ndarray:
        return repeat(rng, samples(rng.integers(2, 8) * beat_s), one, (beat_s, 1.2 * beat_s))

    return repeat(rng, n_samples, phrase, (0.7, 2))


def cricket(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A cricket: groups of pulses of a high carrier. Shape: (n_samples,)."""
    carrier_hz, pulse_s, n_pulses = rng.uniform(3500, 5800), rng.uniform(0.012, 0.022), int(rng.integers(2, 6))

    def pulse() -> np.ndarray:
        n = samples(pulse_s)
        return harmonics(np.full(n, carrier_hz), np.array([1, 0.15])) * swell(n)

    def chirp() -> np.ndarray:
        return repeat(rng, samples(n_pulses * 1.6 * pulse_s), pulse, (1.6 * pulse_s, 1.6 * pulse_s))

    period_s = rng.uniform(0.2, 0.6)
    return repeat(rng, n_samples, chirp, (period_s, 1.05 * period_s))


# Weather and water


def rain(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Rain: a hiss with drops in it. Shape: (n_samples,)."""
    hiss = band_noise(rng, n_samples, rng.uniform(300, 1500), rng.uniform(9000, 16_000))
    drops = np.where(rng.random(n_samples) < rng.uniform(20, 200) / SAMPLE_RATE, rng.exponential(1, n_samples), 0)
    drops = resonance(drops, rng.uniform(1500, 5000), rng.uniform(200, 800))
    return hiss * (1 + 0.2 * wander(rng, n_samples, 2)) + rng.uniform(20, 150) * drops


def thunder(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Thunder: claps that rumble and fade. Shape: (n_samples,)."""
    corner_hz = rng.uniform(120, 350)

    def clap() -> np.ndarray:
        n = samples(rng.uniform(1.5, 5))
        rumble = coloured_noise(rng, n, exponent=2, sample_rate=SAMPLE_RATE) * (1 + 0.8 * wander(rng, n, 8))
        crack = band_noise(rng, n, corner_hz, 6 * corner_hz) * decay(n, rng.uniform(0.05, 0.4))
        return rumble * decay(n, rng.uniform(0.5, 2)) + rng.uniform(0, 3) * crack

    return repeat(rng, n_samples, clap, (1.5, 5))


def wind(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Wind that howls in gusts. Shape: (n_samples,)."""
    centre_hz = rng.uniform(200, 700)
    gusts = 0.6 + 0.4 * wander(rng, n_samples, rng.uniform(0.5, 2))
    howl = band_noise(rng, n_samples, 0.8 * centre_hz, 1.3 * centre_hz)
    rush = coloured_noise(rng, n_samples, exponent=rng.uniform(1.2, 1.8), sample_rate=SAMPLE_RATE)
    return gusts * (rng.uniform(1, 4) * howl + 0.5 * rush)


def waves_and_surf(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Waves that come in and break into foam. Shape: (n_samples,)."""
    seconds = np.arange(n_samples) / SAMPLE_RATE
    breaking = np.sin(np.pi * (seconds / rng.uniform(3, 7) + rng.uniform(0.1, 0.6))) ** 2
    roar = coloured_noise(rng, n_samples, exponent=rng.uniform(0.8, 1.3), sample_rate=SAMPLE_RATE)
    foam = band_noise(rng, n_samples, 2000, rng.uniform(6000, 12_000))
    return (0.2 + breaking) * roar + rng.uniform(1, 2) * breaking**3 * foam


# Things


def church_bell(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A church bell that is struck again and again. Shape: (n_samples,)."""
    strike_hz, ring_s = rng.uniform(180, 700), rng.uniform(0.8, 3)
    detuned = [(ratio * rng.normal(1, 0.004), gain * rng.uniform(0.5, 1.5)) for ratio, gain in BELL_PARTIALS]

    def stroke() -> np.ndarray:
        n = samples(3 * ring_s)
        angles = 2 * np.pi * strike_hz * np.arange(n) / SAMPLE_RATE
        partials = [gain * np.sin(ratio * angles) * decay(n, ring_s / ratio) for ratio, gain in detuned]
        return np.sum(partials, axis=0)

    return repeat(rng, n_samples, stroke, (0.9, 2.5))


def siren(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A siren that goes up and down, or changes between two tones. Shape: (n_samples,)."""
    low_hz, high_hz = rng.uniform(400, 750), rng.uniform(900, 1700)
    position = (np.arange(n_samples) / SAMPLE_RATE * np.exp(rng.uniform(np.log(0.25), np.log(4))) + rng.random()) % 1
    up_and_down, two_tones = 1 - np.abs(2 * position - 1), position < 0.5
    height = up_and_down if rng.random() < 0.5 else two_tones
    return harmonics(low_hz + (high_hz - low_hz) * height, rng.uniform(0.3, 0.9) ** np.arange(10))


def tick_tock(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A clock that ticks, with two bodies by turns. Shape: (n_samples,)."""
    bodies_hz = np.array([1, rng.uniform(0.7, 0.9)]) * rng.uniform(1800, 5000)
    ring_hz, period_s, beats = rng.uniform(100, 500), rng.uniform(0.2, 0.6), 0

    def tick() -> np.ndarray:
        nonlocal beats
        beats += 1
        hit = 0.01 * rng.standard_normal(samples(0.05)) * decay(samples(0.05), 0.002)
        hit[0] = 1
        return resonance(hit, bodies_hz[beats % 2], ring_hz)

    return repeat(rng, n_samples, tick, (period_s, 1.01 * period_s))


def idling(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """An engine that idles: pulses of its firing, and its exhaust. Shape: (n_samples,)."""
    firing_hz = rng.uniform(18, 60) * (1 + 0.03 * wander(rng, n_samples, 3))
    gains = rng.uniform(0.3, 1, 40) / np.arange(1, 41) ** rng.uniform(0.3, 1)
    pulses = harmonics(firing_hz, gains)
    exhaust = coloured_noise(rng, n_samples, exponent=1.5, sample_rate=SAMPLE_RATE)
    return pulses + rng.uniform(0.2, 0.8) * exhaust * (1 + np.clip(pulses, -1, 1))


def knock(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Knocks on a board. Shape: (n_samples,)."""
    board_hz, ring_hz, pace_s = rng.uniform(120, 450), rng.uniform(15, 60), rng.uniform(0.13, 0.3)

    def one() -> np.ndarray:
        n = samples(0.15)
        hit = rng.standard_normal(n) * decay(n, 0.004)
        return resonance(hit, board_hz, ring_hz) + 0.5 * resonance(hit, 2.7 * board_hz, 2 * ring_hz) + 0.02 * hit

    def knocks() -> np.ndarray:
        return repeat(rng, samples(rng.integers(2, 6) * pace_s), one, (pace_s, 1.1 * pace_s))

    return repeat(rng, n_samples, knocks, (1.2, 2.5))


def computer_keyboard(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Keys that are pressed and released, in bursts. Shape: (n_samples,)."""
    low_hz, high_hz = rng.uniform(700, 2000), rng.uniform(4000, 9000)

    def key() -> np.ndarray:
        n = samples(0.12)
        down, up = rng.uniform(0.003, 0.008), samples(rng.uniform(0.04, 0.08))
        press = band_noise(rng, n, low_hz, high_hz) * decay(n, down) * rng.uniform(0.4, 1)
        press[up:] += 0.5 * band_noise(rng, n - up, 1.3 * low_hz, 1.3 * high_hz) * decay(n - up, down)
        return press

    return repeat(rng, n_samples, key, (0.07, rng.uniform(0.15, 0.35)))


def clapping(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Hands that clap. Shape: (n_samples,)."""
    centre_hz, ring_s, pace_s = rng.uniform(700, 2000), rng.uniform(0.006, 0.02), rng.uniform(0.18, 0.5)

    def clap() -> np.ndarray:
        n = samples(8 * ring_s)
        return band_noise(rng, n, 0.6 * centre_hz, 2 * centre_hz) * decay(n, ring_s) * rng.uniform(0.6, 1)

    return repeat(rng, n_samples, clap, (pace_s, 1.15 * pace_s))


def applause(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A crowd of people clapping, each at a pace and a moment of their own."""
    crowd = np.zeros(n_samples)
    for _ in range(rng.integers(10, 40)):
        one = clapping(rng, n_samples + samples(0.5))
        start = rng.integers(0, len(one) - n_samples)
        crowd += rng.uniform(0.2, 1) * one[start : start + n_samples]
    return crowd


# Voices


def male_speech(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Syllables at the pitch of a man's voice. Shape: (n_samples,)."""
    return speech(rng, n_samples, pitch_hz=rng.uniform(85, 150), formant_scale=rng.uniform(0.95, 1.05))


def female_speech(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Syllables at the pitch of a woman's voice. Shape: (n_samples,)."""
    return speech(rng, n_samples, pitch_hz=rng.uniform(165, 260), formant_scale=WOMEN_TO_MEN * rng.uniform(0.95, 1.05))


def speech(rng: np.random.Generator, n_samples: int, *, pitch_hz: float, formant_scale: float) -> np.ndarray:
    """Syllables of no language: perhaps a fricative, then a vowel whose pitch falls. Shape: (n_samples,)."""

    def syllable() -> np.ndarray:
        n = samples(rng.uniform(0.1, 0.28))
        glide = pitch_hz * rng.uniform(0.8, 1.3) * np.linspace(1, rng.uniform(0.8, 1.05), n)
        # Gains that fall by 6 dB an octave: a glottal pulse and the lips it is radiated from.
        source = harmonics(glide, 1 / np.arange(1, 40)) + 0.02 * rng.standard_normal(n)
        formants_hz = formant_scale * np.array(VOWELS_HZ[rng.integers(len(VOWELS_HZ))])
        vowel = np.sum([resonance(source, formant_hz, 0.1 * formant_hz + 40) for formant_hz in formants_hz], axis=0)
        vowel *= swell(n) ** 0.5 / np.abs(vowel).max()
        if rng.random() < 0.5:
            return vowel
        hiss = band_noise(rng, samples(rng.uniform(0.05, 0.12)), rng.uniform(2000, 5000), rng.uniform(7000, 12_000))
        return np.concatenate([0.15 * hiss * swell(len(hiss)), vowel])

    return repeat(rng, n_samples, syllable, (0.16, 0.45))


# By the names that FSD50K has for its leaf classes.
SOUNDS: dict[str, Sound] = {
    "Applause": applause,
    "Bark": bark,
    "Chirp_and_tweet": chirp_and_tweet,
    "Church_bell": church_bell,
    "Clapping": clapping,
    "Computer_keyboard": computer_keyboard,
    "Cricket": cricket,
    "Female_speech_and_woman_speaking": female_speech,
    "Idling": idling,
    "Knock": knock,
    "Male_speech_and_man_speaking": male_speech,
    "Meow": meow,
    "Rain": rain,
    "Siren": siren,
    "Thunder": thunder,
    "Tick-tock": tick_tock,
    "Waves_and_surf": waves_and_surf,
    "Wind": wind,
}
