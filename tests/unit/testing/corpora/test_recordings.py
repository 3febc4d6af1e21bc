"""The physics: colour of noise, reverberation time, signal-to-noise ratio."""

from dataclasses import replace

import numpy as np
import pytest

from openfl_audio.testing.corpora.noises import coloured_noise
from openfl_audio.testing.corpora.recordings import Recording, record, reverberate

SAMPLE_RATE = 16_000
CLOSE_AND_QUIET = Recording(
    low_cut_hz=50, high_cut_hz=7500, rt60_s=0.3, wet=1e-6, noise_exponent=0, snr_db=20, peak_db=-6
)


def test_noise_exponents_mean_what_they_say():
    rng = np.random.default_rng(0)
    for exponent in (0, 1, 2):
        power = np.abs(np.fft.rfft(coloured_noise(rng, 160_000, exponent=exponent, sample_rate=SAMPLE_RATE))) ** 2
        octaves = [power[1000 * 2**i : 2000 * 2**i].mean() for i in range(6)]  # from 100 Hz
        slope = np.polyfit(np.arange(6), np.log2(octaves), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.1)


def test_a_recording_has_the_signal_to_noise_ratio_and_the_level_of_its_recordist():
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 1000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    snrs_db, peaks_db = [], []
    for _ in range(100):
        waveform = record(tone, CLOSE_AND_QUIET, rng, sample_rate=SAMPLE_RATE)
        power = np.abs(np.fft.rfft(waveform)) ** 2  # 1 Hz a bin
        signal = power[990:1011].sum()  # the filter's first milliseconds widen the line
        snrs_db.append(10 * np.log10(signal / (power.sum() - signal)))
        peaks_db.append(20 * np.log10(np.abs(waveform).max()))
    # Each recording is off by 2 dB (standard deviation), so the mean of 100 by 0.2.
    assert np.mean(snrs_db) == pytest.approx(20, abs=0.8)
    assert np.mean(peaks_db) == pytest.approx(-6, abs=0.8)
    assert 1 < np.std(snrs_db) < 3


def test_reverberation_falls_by_60_db_in_its_time_and_has_its_share_of_the_power():
    rng = np.random.default_rng(0)
    impulse = np.zeros(2 * SAMPLE_RATE)
    impulse[0] = 1
    room = replace(CLOSE_AND_QUIET, rt60_s=0.5, wet=0.3)
    tail = np.mean([reverberate(impulse, room, rng, sample_rate=SAMPLE_RATE)[1:] ** 2 for _ in range(50)], axis=0)
    assert tail.sum() == pytest.approx(0.3, rel=0.05)
    level_db = 10 * np.log10(tail[:7000].reshape(-1, 100).mean(axis=1))
    fall_db_per_s = np.polyfit(np.arange(70) * 100 / SAMPLE_RATE, level_db, 1)[0]
    assert fall_db_per_s == pytest.approx(-60 / 0.5, rel=0.03)
