"""Decoding, mixing and resampling by what is heard, and every unusable file by its sentence."""

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample as resample_torch

from shard_descriptors.common import audio
from shard_descriptors.common.audio import (
    AudioError,
    audio_problem,
    has_large_kernel,
    read_waveform,
    resample,
    resample_sparsely,
)


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


@pytest.mark.parametrize("told", [0, 2**36 - 1], ids=["zero", "all ones"])
def test_flac_that_does_not_know_its_length_is_decoded_to_its_end(tmp_path, make_tone, told):
    file = tmp_path / "a.flac"
    soundfile.write(file, make_tone(440), 16_000)
    expected = read_waveform(file, 16_000)
    tell_frames(file, told)
    assert audio_problem(file) is None
    np.testing.assert_array_equal(read_waveform(file, 16_000), expected)
    np.testing.assert_array_equal(read_waveform(file.read_bytes(), 16_000), expected)


def test_flac_that_is_shorter_than_it_says_raises(tmp_path, make_tone):
    file = tmp_path / "a.flac"
    soundfile.write(file, make_tone(440), 16_000)
    tell_frames(file, 20_000)
    with pytest.raises(AudioError, match=r"a.flac: is cut short: its header tells of 20,000 samples, and 16,000"):
        read_waveform(file, 16_000)
    tell_frames(file, 2**35)
    with pytest.raises(AudioError, match=r"a.flac: is too long \(34,359,738,368 samples"):
        read_waveform(file, 16_000)


def tell_frames(file, frames):
    content = bytearray(file.read_bytes())
    kept = int.from_bytes(content[18:26], "big") >> 36 << 36
    content[18:26] = (kept | frames).to_bytes(8, "big")
    file.write_bytes(content)


@pytest.mark.parametrize("told", [0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_wav_that_was_written_into_a_pipe_is_decoded_to_its_end(tmp_path, make_tone, told):
    file = tmp_path / "a.wav"
    soundfile.write(file, make_tone(440), 16_000)
    expected = read_waveform(file, 16_000)
    put(file, 40, told, 4)
    assert audio_problem(file) is None
    np.testing.assert_array_equal(read_waveform(file, 16_000), expected)


WRONG_HEADERS = {
    "more bytes than there are": (40, 40_000, 4, "is cut short: its header tells of 40,000 bytes of samples, and 32"),
    "fewer bytes than there are": (40, 100, 4, "has a wrong header: it tells of 100 bytes of samples, and 32,000"),
    "no channels": (22, 0, 2, "is not audio"),
    "one hertz": (24, 1, 4, "claims 1 Hz; recordings have 1,000 to 768,000 Hz"),
    "two megahertz": (24, 2_000_000, 4, "claims 2,000,000 Hz"),
}


@pytest.mark.parametrize(("place", "value", "size", "sentence"), WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_a_wav_header_that_lies_is_found_without_decoding(tmp_path, make_tone, place, value, size, sentence):
    file = tmp_path / "a.wav"
    soundfile.write(file, make_tone(440), 16_000)
    put(file, place, value, size)
    assert sentence in audio_problem(file)
    with pytest.raises(AudioError, match=f"a.wav: {sentence}"):
        read_waveform(file, 16_000)


def put(file, place, value, size):
    content = bytearray(file.read_bytes())
    content[place : place + size] = value.to_bytes(size, "little")
    file.write_bytes(content)


def test_a_wav_file_with_a_chunk_behind_its_samples_is_good(tmp_path, make_tone):
    file = tmp_path / "a.wav"
    soundfile.write(file, make_tone(440)[:50], 16_000)
    file.write_bytes(file.read_bytes() + b"LIST" + (400).to_bytes(4, "little") + bytes(400))
    assert read_waveform(file, 16_000).shape == (50,)


def test_samples_beyond_the_bound_are_not_kept(tmp_path, make_tone, monkeypatch):
    monkeypatch.setattr(audio, "MAX_SAMPLES", 10_000)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 4_096)
    file = tmp_path / "a.flac"
    soundfile.write(file, make_tone(440), 16_000)
    tell_frames(file, 0)
    with pytest.raises(AudioError, match=r"a.flac: is too long \(more than 10,000 samples\)"):
        read_waveform(file, 16_000)


@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_make_the_same_waveform_as_one_read(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1_000)
    signal = np.random.default_rng(0).uniform(-1, 1, (16_000, channels))
    soundfile.write(tmp_path / "a.wav", signal, 16_000)
    whole = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)[0].mean(axis=1)
    np.testing.assert_array_equal(read_waveform(tmp_path / "a.wav", 16_000), whole)


@pytest.mark.parametrize("rate", [15_999, 16_001, 22_257, 44_099])
def test_rates_that_share_no_factor_keep_a_tone_and_suppress_aliases(rate):
    assert has_large_kernel(rate, 16_000)
    time, wanted = np.arange(2 * rate) / rate, np.arange(32_000) / 16_000
    tone = resample(np.sin(2 * np.pi * 1_000 * time).astype(np.float32), rate, 16_000)
    assert tone.shape == (32_000,)
    assert tone.dtype == np.float32
    np.testing.assert_allclose(tone[500:-500], np.sin(2 * np.pi * 1_000 * wanted)[500:-500], atol=2e-3)
    if rate > 22_000:
        alias = resample(np.sin(2 * np.pi * 10_000 * time).astype(np.float32), rate, 16_000)
        assert np.abs(alias[500:-500]).max() < 0.01


@pytest.mark.parametrize("rates", [(8_000, 16_000), (11_025, 16_000), (44_100, 16_000), (48_000, 22_050)])
def test_usual_rates_are_resampled_by_torchaudio_and_the_sparse_filter_is_its_filter(rates):
    noise = np.random.default_rng(0).normal(size=rates[0]).astype(np.float32)
    expected = resample_torch(torch.from_numpy(noise), *rates).numpy()
    np.testing.assert_array_equal(resample(noise, *rates), expected)
    # torchaudio computes its kernel in float32.
    np.testing.assert_allclose(resample_sparsely(noise, *rates), expected, atol=2e-4)
