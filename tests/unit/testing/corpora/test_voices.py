import numpy as np
import pytest

from openfl_audio.errors import DemoCorpusError
from openfl_audio.testing.corpora import voices
from openfl_audio.testing.corpora.sentences import N_WORDS, make_sentence


def test_every_speaker_has_a_voice_of_their_own():
    speakers = voices.choose_speakers(len(voices.VARIANTS), seed=0)
    assert {speaker.voice.partition("+")[2] for speaker in speakers} == set(voices.VARIANTS)
    assert sum(speaker.sex == "F" for speaker in speakers) == len(voices.FEMALE_VARIANTS)


def test_sentences_have_no_mark_but_apostrophes_and_every_letter_of_the_alphabet():
    rng = np.random.default_rng(0)
    sentences = [make_sentence(rng) for _ in range(500)]
    assert set("".join(sentences)) == set("abcdefghijklmnopqrstuvwxyz '")
    assert all(N_WORDS[0] <= len(sentence.split(" ")) <= N_WORDS[1] for sentence in sentences)
    assert len(set(sentences)) > 490


def test_the_child_says_what_it_is_told_in_the_order_it_is_told(espeak):
    text = ["six", "the old king went home and the young king followed him slowly", "one two three four"]
    utterances = [voices.Utterance(words, "gmw/en-US+m3", 50, 50, 160, seed=1) for words in text]
    durations_s = [len(voices.without_silence(speech)) / voices.SAMPLE_RATE for speech in voices.speak(utterances)]
    # 160 words a minute are 2.7 a second; espeak-ng counts a word as 5 letters or so.
    assert durations_s == pytest.approx([1 / 2.7, 13 / 2.7, 4 / 2.7], rel=0.5)


def test_without_espeak_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoCorpusError, match=r"pip install openfl-audio\[demo\]"):
        voices.check_espeak()


def test_a_failing_child_is_reported_in_one_sentence(espeak):
    unknown_voice = voices.Utterance("yes", voice="gmw/nowhere", pitch=50, pitch_range=50, rate=150, seed=1)
    with pytest.raises(DemoCorpusError, match="it has no voice 'gmw/nowhere'"):
        list(voices.speak([unknown_voice]))
