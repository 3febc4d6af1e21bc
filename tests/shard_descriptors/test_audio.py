"""Decoding, mixing and resampling by what is heard, and every unusable file by its sentence."""

import numpy as np
import pytest
import soundfile

from shard_descriptors.audio import AudioError, audio_problem, read_waveform


def test_a_mono_file_comes_back_sample_by_sample(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.wav", make_tone(440), 16_000)
    waveform = read_waveform(tmp_path / "a.wav", 16_000)
    assert waveform.shape == (16_000,)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, make_tone(440), atol=2**-15)  # a step of 16 bits


def test_bytes_and_file_give_the_same(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.flac", make_tone(440), 16_000)
    from_bytes = read_waveform((tmp_path / "a.flac").read_bytes(), 16_000)
    np.testing.assert_array_equal(from_bytes, read_waveform(str(tmp_path / "a.flac"), 16_000))


def test_stereo_is_the_mean_of_its_channels(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.wav", np.stack([make_tone(300), make_tone(900)], axis=1), 16_000)
    waveform = read_waveform(tmp_path / "a.wav", 16_000)
    np.testing.assert_allclose(waveform, (make_tone(300) + make_tone(900)) / 2, atol=2**-15)


@pytest.mark.parametrize("file_rate", [8_000, 44_100, 48_000])
def test_other_rates_keep_pitch_level_and_duration(tmp_path, make_tone, file_rate):
    soundfile.write(tmp_path / "a.wav", make_tone(1_000, file_rate), file_rate)
    waveform = read_waveform(tmp_path / "a.wav", 16_000)
    assert waveform.shape == (16_000,)
    assert waveform.dtype == np.float32
    middle = slice(1_000, 15_000)  # the filter fades at both ends
    np.testing.assert_allclose(waveform[middle], make_tone(1_000)[middle], atol=0.01)  # 2 % of the level


def test_a_tone_above_the_new_nyquist_frequency_vanishes(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.wav", make_tone(12_000, 48_000), 48_000)
    waveform = read_waveform(tmp_path / "a.wav", 16_000)
    assert np.abs(waveform[1_000:15_000]).max() < 0.005  # 1 % of the level; an alias would sound at 4 kHz


UNUSABLE = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"see attached recording\n" * 50, r"is not audio \(Format not recognised"),
    # FF FE, the mark of UTF-16 text, is also how an MP3 frame may begin: libsndfile finds 4 seconds of sound here
    "MP3 by accident": (b"\xff\xfe\x00" * 999, "is not WAV, FLAC or OGG"),
    "zeros": (b"\0" * 4_000, "is not audio"),
    "half a header": (b"RIFF", "is not audio"),
}


@pytest.mark.parametrize(("content", "sentence"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_not_audio_raises(tmp_path, content, sentence):
    file = tmp_path / "bad.wav"
    file.write_bytes(content)
    with pytest.raises(AudioError, match=f"bad.wav: {sentence}"):
        read_waveform(file, 16_000)
    with pytest.raises(AudioError, match=f"row 7: {sentence}"):
        read_waveform(content, 16_000, name="row 7")
    assert audio_problem(file) is not None


def test_a_file_without_samples_raises(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match=r"a.wav: is empty \(0 samples\)"):
        read_waveform(tmp_path / "a.wav", 16_000)
    assert audio_problem(tmp_path / "a.wav") == "is empty (0 samples)"


def test_a_file_that_is_not_there_raises(tmp_path):
    with pytest.raises(AudioError, match=r"gone.wav: cannot be read \(No such file or directory\)"):
        read_waveform(tmp_path / "gone.wav", 16_000)


def test_a_truncated_flac_file_raises(tmp_path, make_tone):
    file = tmp_path / "a.flac"
    soundfile.write(file, make_tone(440), 16_000)
    file.write_bytes(file.read_bytes()[:5_000])
    assert audio_problem(file) is None  # its header is whole
    with pytest.raises(AudioError, match=r"a.flac: cannot be decoded \(.*flac"):
        read_waveform(file, 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_raise(tmp_path, make_tone, value):
    waveform = make_tone(440)
    waveform[100] = value
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a.wav: has samples that are NaN or infinite"):
        read_waveform(tmp_path / "a.wav", 16_000)


def test_a_good_file_has_no_problem(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.wav", make_tone(440), 16_000)
    assert audio_problem(tmp_path / "a.wav") is None
