"""The corpus of words is small here: three speakers, one for each split."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from openfl_audio.errors import DemoCorpusError
from openfl_audio.testing.corpora import speech_commands as demo

N_SPEAKERS = 3

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def corpus(espeak, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "corpus"
    assert demo.make_speech_commands(out, n_speakers=N_SPEAKERS, seed=7)
    return out


def read_list(corpus: Path, name: str) -> list[str]:
    return (corpus / f"{name}_list.txt").read_text().split()


def test_the_layout_is_that_of_speech_commands(corpus):
    folders = {path.name for path in corpus.iterdir() if path.is_dir()}
    assert folders == {*demo.KEYWORDS, *demo.OTHER_WORDS, "_background_noise_"}
    assert len(demo.KEYWORDS) == 10
    assert len(set(demo.OTHER_WORDS) - set(demo.KEYWORDS)) >= 8
    for word in demo.KEYWORDS:
        clips = sorted((corpus / word).iterdir())
        assert len(clips) == N_SPEAKERS * demo.KEYWORD_TAKES
        for clip in clips:
            speaker, nohash, take = clip.stem.split("_")
            assert (len(speaker), nohash) == (8, "nohash")
            assert int(speaker, 16) >= 0
            assert int(take) in range(demo.KEYWORD_TAKES)


def test_every_clip_is_one_second_of_16_khz_mono_and_not_silent(corpus):
    clips = [path for path in corpus.glob("*/*.wav") if path.parent.name != "_background_noise_"]
    assert clips
    for clip in clips:
        info = soundfile.info(clip)
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (16_000, 1, 16_000, "PCM_16")
        waveform, _ = soundfile.read(clip)
        assert 0.1 < np.abs(waveform).max() < 1
        # A word is a loud part of the second, not an even noise: its loudest 50 ms are far above its quietest.
        power = (waveform.reshape(20, 800) ** 2).mean(axis=1)
        assert power.max() > 50 * power.min()


def test_background_noise_lasts_4_to_10_seconds_and_is_of_several_kinds(corpus):
    noises = sorted((corpus / "_background_noise_").iterdir())
    assert {path.stem.rpartition("_")[0] for path in noises} == set(demo.NOISES)
    for noise in noises:
        waveform, rate = soundfile.read(noise)
        assert rate == 16_000
        assert 4 <= len(waveform) / rate <= 10
        assert 0.01 < np.abs(waveform).max() < 1


def test_each_list_holds_every_clip_of_its_speakers(corpus):
    everything = {str(path.relative_to(corpus)) for path in corpus.glob("*/*_nohash_*.wav")}
    validation, testing = set(read_list(corpus, "validation")), set(read_list(corpus, "testing"))
    training = everything - validation - testing
    assert validation | testing <= everything
    speakers = [{Path(path).name[:8] for path in split} for split in (training, validation, testing)]
    assert [len(names) for names in speakers] == [1, 1, 1]
    assert len(set.union(*speakers)) == N_SPEAKERS


def test_unknown_is_one_to_two_times_a_keyword_class():
    takes = [take for speaker in range(52) for take in demo.takes_of(speaker)]
    unknown = [word for _, word, _ in takes if word in demo.OTHER_WORDS]
    yes = [word for _, word, _ in takes if word == "yes"]
    assert len(yes) <= len(unknown) <= 2 * len(yes)
    assert set(unknown) == set(demo.OTHER_WORDS)


def test_takes_of_a_word_by_one_speaker_differ(corpus):
    for word in ("yes", "stop"):
        for speaker in {path.name[:8] for path in (corpus / word).iterdir()}:
            takes = [soundfile.read(path)[0] for path in sorted((corpus / word).glob(f"{speaker}_*"))]
            # Not the same speech at another place in the second: no shift makes two takes the same wave.
            spectra = [np.fft.rfft(take / np.linalg.norm(take), 32_000) for take in takes]
            for i in range(len(takes)):
                for j in range(i):
                    correlation = np.fft.irfft(spectra[i] * spectra[j].conj())
                    assert np.abs(correlation).max() < 0.95


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(corpus, tmp_path, files_of):
    demo.make_speech_commands(tmp_path / "again", n_speakers=N_SPEAKERS, seed=7)
    demo.make_speech_commands(tmp_path / "other", n_speakers=N_SPEAKERS, seed=8)
    assert files_of(tmp_path / "again") == files_of(corpus)
    assert files_of(tmp_path / "other") != files_of(corpus)


def test_a_complete_corpus_is_left_as_it_is(corpus):
    marker = corpus / "corpus.json"
    before = marker.stat().st_mtime_ns
    assert json.loads(marker.read_text())["n_speakers"] == N_SPEAKERS
    assert not demo.make_speech_commands(corpus, n_speakers=N_SPEAKERS, seed=7)
    assert marker.stat().st_mtime_ns == before


def test_a_corpus_of_other_parameters_is_refused(corpus):
    with pytest.raises(DemoCorpusError, match="not a demo corpus of 3 speakers and seed 8"):
        demo.make_speech_commands(corpus, n_speakers=N_SPEAKERS, seed=8)


def test_nothing_of_an_interrupted_run_is_left(espeak, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "background_noises", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.make_speech_commands(tmp_path / "corpus", n_speakers=N_SPEAKERS, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("n_speakers", "seed"), [(2, 0), (1000, 0), (3, -1)])
def test_parameters_out_of_range_are_refused(tmp_path, n_speakers, seed):
    with pytest.raises(DemoCorpusError, match="must"):
        demo.make_speech_commands(tmp_path / "corpus", n_speakers=n_speakers, seed=seed)
