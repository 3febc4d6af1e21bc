"""The demo corpus is small here: three speakers, one for each split."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from scripts import make_demo_corpus as demo

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)
N_SPEAKERS = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "corpus"
    assert demo.make_demo_corpus(out, n_speakers=N_SPEAKERS, seed=7)
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_list(corpus: Path, name: str) -> list[str]:
    return (corpus / f"{name}_list.txt").read_text().split()


@needs_espeak
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


@needs_espeak
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


@needs_espeak
def test_background_noise_lasts_4_to_10_seconds_and_is_of_several_kinds(corpus):
    noises = sorted((corpus / "_background_noise_").iterdir())
    assert {path.stem.rpartition("_")[0] for path in noises} == set(demo.NOISES)
    for noise in noises:
        waveform, rate = soundfile.read(noise)
        assert rate == 16_000
        assert 4 <= len(waveform) / rate <= 10
        assert 0.01 < np.abs(waveform).max() < 1


@needs_espeak
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


@needs_espeak
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


def test_every_speaker_has_a_voice_of_their_own():
    speakers = demo.choose_speakers(len(demo.VARIANTS), seed=0)
    assert len({speaker.voice.partition("+")[2] for speaker in speakers}) == len(demo.VARIANTS)
    assert len({speaker.name for speaker in speakers}) == len(demo.VARIANTS)


@needs_espeak
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(corpus, tmp_path):
    demo.make_demo_corpus(tmp_path / "again", n_speakers=N_SPEAKERS, seed=7)
    demo.make_demo_corpus(tmp_path / "other", n_speakers=N_SPEAKERS, seed=8)
    assert files_of(tmp_path / "again") == files_of(corpus)
    assert files_of(tmp_path / "other") != files_of(corpus)


@needs_espeak
def test_a_complete_corpus_is_left_as_it_is(corpus):
    marker = corpus / "corpus.json"
    before = marker.stat().st_mtime_ns
    assert json.loads(marker.read_text())["n_speakers"] == N_SPEAKERS
    assert not demo.make_demo_corpus(corpus, n_speakers=N_SPEAKERS, seed=7)
    assert marker.stat().st_mtime_ns == before


@needs_espeak
def test_a_corpus_of_other_parameters_is_refused(corpus):
    with pytest.raises(demo.DemoCorpusError, match="not a demo corpus of 3 speakers and seed 8"):
        demo.make_demo_corpus(corpus, n_speakers=N_SPEAKERS, seed=8)


@needs_espeak
def test_nothing_of_an_interrupted_run_is_left(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "background_noises", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo_corpus(tmp_path / "corpus", n_speakers=N_SPEAKERS, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_another_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    script = [sys.executable, demo.__file__, "--out", str(tmp_path), "--speakers", "3"]
    run = subprocess.run(script, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert str(tmp_path) in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert files_of(tmp_path) == {"thesis.txt": b"mine"}


def test_without_espeak_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(demo.DemoCorpusError, match=r"pip install openfl-audio\[demo\]"):
        demo.make_demo_corpus(tmp_path / "corpus", n_speakers=N_SPEAKERS, seed=0)


@needs_espeak
def test_a_failing_child_is_reported_in_one_sentence():
    unknown_voice = demo.Utterance(voice="gmw/nowhere", word="yes", pitch=50, pitch_range=50, rate=150, seed=1)
    with pytest.raises(demo.DemoCorpusError, match="it has no voice 'gmw/nowhere'"):
        list(demo.speak([unknown_voice]))


@pytest.mark.parametrize(("n_speakers", "seed"), [(2, 0), (1000, 0), (3, -1)])
def test_parameters_out_of_range_are_refused(tmp_path, n_speakers, seed):
    with pytest.raises(demo.DemoCorpusError, match="must"):
        demo.make_demo_corpus(tmp_path / "corpus", n_speakers=n_speakers, seed=seed)


def test_noise_exponents_mean_what_they_say():
    rng = np.random.default_rng(0)
    for exponent in (0, 1, 2):
        power = np.abs(np.fft.rfft(demo.coloured_noise(rng, 160_000, exponent=exponent))) ** 2
        octaves = [power[1000 * 2**i : 2000 * 2**i].mean() for i in range(6)]  # from 100 Hz
        slope = np.polyfit(np.arange(6), np.log2(octaves), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.1)
