"""The corpus of sentences is small here: four speakers of eight sentences each."""

import re
from collections import Counter

import numpy as np
import pytest
import soundfile

from openfl_audio.errors import DemoCorpusError
from openfl_audio.testing.corpora import librispeech as demo

pytestmark = pytest.mark.training

SIZES = {"n_train_speakers": 2, "n_dev_speakers": 1, "n_test_speakers": 1, "n_utterances": 8}


@pytest.fixture(scope="module")
def corpus(espeak, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "corpus"
    assert demo.make_librispeech(out, **SIZES, seed=7)
    return out


def transcripts(corpus) -> dict[str, str]:
    """Return the transcript of each file, by its path without the suffix."""
    said = {}
    for path in corpus.glob("*/*/*/*.trans.txt"):
        speaker, chapter = path.parts[-3:-1]
        assert path.name == f"{speaker}-{chapter}.trans.txt"
        for number, line in enumerate(path.read_text().splitlines()):
            name, _, text = line.partition(" ")
            assert name == f"{speaker}-{chapter}-{number:04d}"
            said[str(path.with_name(name).relative_to(corpus))] = text
    return said


def speakers(corpus) -> dict[str, list[str]]:
    """SEX, SUBSET, MINUTES and NAME by ID."""
    lines = (corpus / "SPEAKERS.TXT").read_text().splitlines()
    rows = [[field.strip() for field in line.split("|")] for line in lines if not line.startswith(";")]
    return {row[0]: row[1:] for row in rows}


def test_every_file_has_a_transcript_and_every_transcript_a_file(corpus):
    files = {str(path.with_suffix("").relative_to(corpus)) for path in corpus.glob("*/*/*/*.flac")}
    assert files == set(transcripts(corpus))
    assert len(files) == 32
    assert Counter(file.split("/")[0] for file in files) == {"train-clean-100": 16, "dev-clean": 8, "test-clean": 8}
    chapters = {tuple(file.split("/")[:3]) for file in files}
    assert 4 <= len(chapters) <= 8
    assert len({chapter for *_, chapter in chapters}) == len(chapters)


def test_transcripts_are_upper_case_words_and_nobody_reads_a_sentence_twice(corpus):
    said = list(transcripts(corpus).values())
    assert len(set(said)) == len(said)
    assert all(re.fullmatch(r"[A-Z']+( [A-Z']+)+", text) for text in said)


def test_files_are_16_khz_mono_flac_of_2_to_7_seconds_and_not_silent(corpus):
    for path in corpus.glob("*/*/*/*.flac"):
        info = soundfile.info(path)
        assert (info.format, info.samplerate, info.channels, info.subtype) == ("FLAC", 16_000, 1, "PCM_16")
        assert 2 <= info.duration <= 7
        assert 0.05 < np.abs(soundfile.read(path)[0]).max() < 1


def test_a_file_says_what_its_transcript_says(corpus):
    """Longer sentences of a speaker take longer, so that a mix-up of the order would show."""
    letters, durations_s = {}, {}
    for file, text in transcripts(corpus).items():
        speaker = file.split("/")[1]
        letters.setdefault(speaker, []).append(len(text))
        durations_s.setdefault(speaker, []).append(soundfile.info(corpus / f"{file}.flac").duration)
    for speaker in letters:
        assert np.corrcoef(letters[speaker], durations_s[speaker])[0, 1] > 0.6
    whole = [np.concatenate([np.array(side[speaker]) / np.mean(side[speaker]) for speaker in letters])
             for side in (letters, durations_s)]  # fmt: skip
    assert np.corrcoef(*whole)[0, 1] > 0.8


def test_the_table_of_speakers_tells_their_subset_and_minutes(corpus):
    table = speakers(corpus)
    assert (corpus / "SPEAKERS.TXT").read_text().startswith(";ID  |SEX| SUBSET           |MINUTES| NAME\n")
    folders = {path.name: path for path in corpus.glob("*/*") if path.is_dir()}
    assert set(table) == set(folders)
    for speaker, (sex, subset, minutes, _) in table.items():
        assert sex in ("F", "M")
        assert subset == folders[speaker].parent.name
        seconds = sum(soundfile.info(path).duration for path in folders[speaker].glob("*/*.flac"))
        assert float(minutes) == pytest.approx(seconds / 60, abs=0.005)


def test_speakers_of_all_subsets_have_voices_rooms_and_numbers_of_their_own():
    readers = demo.choose_readers({"train-clean-100": 24, "dev-clean": 6, "test-clean": 6}, seed=0)
    assert len({reader.voice.voice.partition("+")[2] for reader in readers}) == 36
    assert len({reader.number for reader in readers}) == 36
    assert len({reader.recording for reader in readers}) == 36
    assert {reader.voice.sex for reader in readers} == {"F", "M"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(corpus, tmp_path, files_of):
    demo.make_librispeech(tmp_path / "again", **SIZES, seed=7)
    demo.make_librispeech(tmp_path / "other", **SIZES, seed=8)
    assert files_of(tmp_path / "again") == files_of(corpus)
    assert files_of(tmp_path / "other") != files_of(corpus)


def test_a_complete_corpus_is_left_as_it_is_and_refused_for_other_parameters(corpus):
    assert not demo.make_librispeech(corpus, **SIZES, seed=7)
    with pytest.raises(DemoCorpusError, match="not a demo corpus of 2, 1 and 1 speakers of 8 utterances each"):
        demo.make_librispeech(corpus, **SIZES, seed=8)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"n_dev_speakers": 0}, "The number of speakers of dev-clean must be at least 1, not 0."),
        ({"n_train_speakers": 60}, "The number of speakers of all subsets must be from 3 to 64, not 72."),
        ({"n_utterances": 0}, "The number of utterances of a speaker must be from 1 to 1000, not 0."),
        ({"seed": -1}, "The seed must not be negative, and it is -1."),
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path, sizes, sentence):
    with pytest.raises(DemoCorpusError, match=sentence):
        demo.make_librispeech(tmp_path / "corpus", **sizes)
