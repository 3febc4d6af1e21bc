import doctest

import torch

from workspaces.speech_recognition import letters
from workspaces.speech_recognition.letters import LETTERS, comparable, decode, encode, normalize


def test_the_examples_are_right():
    assert doctest.testmod(letters).failed == 0


def test_classes_are_the_blank_space_apostrophe_and_26_letters():
    assert len(set(LETTERS)) == len(LETTERS) == 28


def test_what_is_said_comes_back_through_the_classes():
    text = "it's a quick brown fox that jumps over the lazy dog"
    classes = [label for letter in encode(text) for label in (letter, letter, 0)]
    assert decode(torch.tensor(classes)) == text
    assert normalize(text.upper()) == normalize(text) == text
    assert set(encode(text)) <= set(range(1, 29))


def test_silence_is_no_text():
    assert decode(torch.tensor([0, 1, 1, 0, 1])) == decode(torch.tensor([0])) == ""
    assert normalize("1234 -- ") == ""


def test_other_letters_keep_their_accents_and_lose_those_of_others():
    german = LETTERS + "äöüß"
    assert normalize("Ein Café in KÖLN, große Straße", german) == "ein cafe in köln große straße"
    assert normalize("KÖLN") == "koln"
    assert decode(torch.tensor(encode("köln", german)), german) == "köln"


def test_texts_are_compared_in_the_form_that_is_said():
    assert comparable("Mr. Smith's 21 cats", "letters") == "mr smith's cats"
    assert comparable("Mr. Smith's <noise> 21 cats!", "basic") == "mr smith s 21 cats"
    assert comparable("Mr. Smith won't see twenty-one cats", "english") == "mister smith will not see 21 cats"
