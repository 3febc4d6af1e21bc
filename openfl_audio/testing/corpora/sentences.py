"""English sentences from a small grammar and some two hundred words, with every letter and every phone of English."""

from collections.abc import Sequence

import numpy as np

N_WORDS = (8, 14)  # 2 to 7 seconds at the speeds of `voices.choose_speakers`

OPENINGS = (
    "at six o'clock", "in the end", "yesterday", "all night long", "it wasn't long before", "nobody knows why",
    "we didn't hear that", "they'd seen how", "before breakfast", "once again", "after the war", "he couldn't say when",
    "for a few weeks", "she thought that", "as usual", "one winter's day",
)  # fmt: skip
NAMES = (
    "alice", "george", "victoria", "doctor jones", "the queen's brother", "uncle joe", "mary", "oliver", "zoe",
    "captain hughes", "father", "miss rose", "thomas", "everybody",
)  # fmt: skip
DETERMINERS = ("the", "the", "the", "his", "her", "my", "our", "this", "that", "another", "every")
ADJECTIVES = (
    "old", "young", "yellow", "quiet", "broken", "huge", "little", "dark", "strange", "frozen", "golden", "very good",
    "wooden", "foolish", "thirsty", "gentle", "narrow", "pale", "cheerful", "empty", "sharp", "brave", "lazy", "royal",
)  # fmt: skip
NOUNS = (
    "garden", "ship", "king", "mountain", "teacher", "horse", "letter", "river", "child", "forest", "bridge", "judge",
    "village", "thief", "window", "church", "fish", "measure", "treasure", "voice", "box", "feather", "soldier", "cook",
    "lion", "moon", "farmer", "boy", "girl", "house", "quarrel", "island", "clock", "storm", "kitchen", "zebra", "ring",
    "bath", "vision", "orange", "joke", "yacht", "tooth", "cloud", "sheep", "engine", "coin", "bear", "town", "path",
)  # fmt: skip
TRANSITIVE_VERBS = (
    "found", "saw", "carried", "loved", "broke", "followed", "painted", "lost", "watched", "heard", "bought", "hid",
    "chose", "enjoyed", "forgot", "measured", "caught", "pushed", "washed", "thanked", "gave away", "asked about",
)  # fmt: skip
INTRANSITIVE_VERBS = (
    "slept", "laughed", "waited", "sang", "vanished", "arrived", "stood up", "went home", "turned back", "shouted",
    "froze", "danced", "walked", "breathed", "coughed", "grew", "fell down", "yawned", "lived", "wept",
)  # fmt: skip
ADVERBS = (
    "slowly", "twice", "with joy", "at once", "quickly", "in silence", "for years", "alone", "together", "as before",
    "too early", "without a word",
)  # fmt: skip
PREPOSITIONS = (
    "under", "behind", "near", "beyond", "above", "across", "inside", "through", "beside", "toward", "around",
)  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CONJUNCTIONS = ("and", "but", "while", "because", "until", "so", "where", "though")


def make_sentence(rng: np.random.Generator) -> str:
    """Lower-case words, `N_WORDS` of them, with single spaces and no marks but apostrophes."""
    while True:
        parts = [clause(rng)]
        if rng.random() < 0.5:
            parts.insert(0, pick(rng, OPENINGS))
        if rng.random() < 0.5:
            parts += [pick(rng, CONJUNCTIONS), clause(rng)]
        sentence = " ".join(parts)
        if N_WORDS[0] <= len(sentence.split()) <= N_WORDS[1]:
            return sentence


def make_number(rng: np.random.Generator) -> str:
    """Return two to five digits as words: what a small recognizer learns in minutes."""
    return " ".join(DIGITS[digit] for digit in rng.integers(0, len(DIGITS), size=rng.integers(2, 6)))


def clause(rng: np.random.Generator) -> str:
    """Somebody does something, perhaps somewhere."""
    subject = pick(rng, NAMES) if rng.random() < 0.3 else thing(rng)
    if rng.random() < 0.5:
        words = [subject, pick(rng, TRANSITIVE_VERBS), thing(rng)]
    else:
        words = [subject, pick(rng, INTRANSITIVE_VERBS)]
        if rng.random() < 0.5:
            words.append(pick(rng, ADVERBS))
    if rng.random() < 0.4:
        words += [pick(rng, PREPOSITIONS), thing(rng)]
    return " ".join(words)


def thing(rng: np.random.Generator) -> str:
    """The old house, my horse, and the like."""
    words = [pick(rng, DETERMINERS), pick(rng, NOUNS)]
    if rng.random() < 0.5:
        words.insert(1, pick(rng, ADJECTIVES))
    return " ".join(words)


def pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Return one of `words` at random."""
    return words[int(rng.integers(len(words)))]
