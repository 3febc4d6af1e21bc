import numpy as np
import pytest

from openfl_audio.testing.corpora.fsd50k import ANCESTORS
from openfl_audio.testing.corpora.sound_events import SAMPLE_RATE, SOUNDS, harmonics, repeat, resonance


@pytest.mark.parametrize("name", ANCESTORS)
@pytest.mark.parametrize("n_samples", [13_230, 100_000])
def test_every_class_has_a_sound_that_begins_at_once_and_is_never_the_same(name, n_samples):
    one, other = (SOUNDS[name](np.random.default_rng(seed), n_samples) for seed in (0, 1))
    for waveform in (one, other):
        assert waveform.shape == (n_samples,)
        assert np.isfinite(waveform).all()
        assert np.abs(waveform[:4410]).max() > 0.02 * np.abs(waveform).max() > 0
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5
    again = SOUNDS[name](np.random.default_rng(0), n_samples)
    np.testing.assert_array_equal(again, one)


def test_harmonics_are_multiples_of_the_pitch_with_their_gains_up_to_18_khz():
    tone = harmonics(np.full(SAMPLE_RATE, 7000.0), np.array([1, 0.5, 0.25]))
    amplitude = 2 * np.abs(np.fft.rfft(tone)) / SAMPLE_RATE  # 1 Hz a bin
    assert amplitude[7000] == pytest.approx(1, abs=1e-6)
    assert amplitude[14_000] == pytest.approx(0.5, abs=1e-6)
    assert np.delete(amplitude, [7000, 14_000]).max() < 1e-6  # 21 kHz is left out


def test_a_resonance_has_a_gain_of_1_at_its_frequency_and_half_the_power_at_its_band_edges():
    impulse = np.zeros(SAMPLE_RATE)
    impulse[0] = 1
    gain = np.abs(np.fft.rfft(resonance(impulse, 1000, 100)))
    assert gain.argmax() == 1000
    assert gain[1000] == pytest.approx(1, abs=1e-3)
    # The edges are 100 Hz apart, a little above and below 50 Hz off the centre: the scale of filters is geometric.
    assert np.ptp(np.flatnonzero(gain**2 > 0.5)) == pytest.approx(100, abs=2)


def test_an_event_is_repeated_at_the_interval_until_the_clip_ends():
    waveform = repeat(np.random.default_rng(0), 10_000, lambda: np.ones(2), (0.1, 0.1))
    np.testing.assert_array_equal(np.flatnonzero(waveform), [0, 1, 4410, 4411, 8820, 8821])


def test_the_voices_of_women_are_higher_than_those_of_men():
    def pitch_hz(name: str, seed: int) -> float:
        waveform = SOUNDS[name](np.random.default_rng(seed), 2 * SAMPLE_RATE)
        power = np.abs(np.fft.rfft(waveform, 4 * SAMPLE_RATE)) ** 2
        autocorrelation = np.fft.irfft(power)
        shortest, longest = SAMPLE_RATE // 350, SAMPLE_RATE // 60
        return SAMPLE_RATE / (shortest + autocorrelation[shortest:longest].argmax())

    men = [pitch_hz("Male_speech_and_man_speaking", seed) for seed in range(9)]
    women = [pitch_hz("Female_speech_and_woman_speaking", seed) for seed in range(9)]
    assert 70 < np.median(men) < 170 < np.median(women) < 320
