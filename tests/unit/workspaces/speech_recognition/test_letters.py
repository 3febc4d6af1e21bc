import doctest

import torch

from workspaces.speech_recognition import letters
from workspaces.speech_recognition.letters import CLASSES, LETTERS, decode, encode, normalize


def test_the_examples_are_right():
    assert doctest.testmod(letters).failed == 0


def test_classes_are_the_blank_space_apostrophe_and_26_letters():
    assert (CLASSES, len(set(LETTERS))) == (29, 28)


def test_what_is_said_comes_back_through_the_classes():
    text = "it's a quick brown fox that jumps over the lazy dog"
    classes = [label for letter in encode(text) for label in (letter, letter, 0)]
    assert decode(torch.tensor(classes)) == text
    assert normalize(text.upper()) == normalize(text) == text
    assert set(encode(text)) <= set(range(1, CLASSES))


def test_silence_is_no_text():
    assert decode(torch.tensor([0, 1, 1, 0, 1])) == decode(torch.tensor([0])) == ""
    assert normalize("1234 -- ") == ""
