"""A corpus of synthetic spoken words in the layout of Speech Commands.

One speaker is one voice variant of espeak-ng with an accent, a pitch and a speed of its own, and every take differs in
pitch, speed, place in the second, loudness and background noise.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from openfl_audio.testing.corpora.noises import NOISES, coloured_noise, make_noise
from openfl_audio.testing.corpora.output import check_count, check_seed, make_folder, with_progress
from openfl_audio.testing.corpora.voices import (
    SAMPLE_RATE,
    VARIANTS,
    Speaker,
    check_espeak,
    choose_speakers,
    speak,
    vary,
    without_silence,
)

N_SAMPLES = 16_000  # every clip lasts exactly one second
CORPUS_VERSION = 1  # raise it when the same seed would give other bytes
MIN_SPEAKERS = 3  # one each for training, validation and test

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHER_WORDS = (
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "six", "tree", "wow", "zero",
)  # fmt: skip
KEYWORD_TAKES = 3
OTHER_WORDS_PER_SPEAKER = 4  # one take each: `_unknown_` stays below twice the size of a keyword


def make_speech_commands(out: Path, *, n_speakers: int = 52, seed: int = 0) -> bool:
    """Write the corpus to `out`, which appears only when it is complete.

    Returns True when the corpus was made, and False when `out` already held a complete corpus of the same parameters.
    Raises `DemoCorpusError` when `out` holds anything else.
    """
    check_count("speakers", n_speakers, MIN_SPEAKERS, len(VARIANTS))
    check_seed(seed)
    return make_folder(
        out,
        {"version": CORPUS_VERSION, "n_speakers": n_speakers, "seed": seed},
        f"{n_speakers} speakers and seed {seed}",
        lambda folder: write_corpus(folder, n_speakers=n_speakers, seed=seed),
    )


def write_corpus(folder: Path, *, n_speakers: int, seed: int) -> None:
    """Write every file but the completion marker `corpus.json`."""
    import soundfile

    check_espeak()
    speakers = choose_speakers(n_speakers, seed)
    names = [name_of(speaker, seed) for speaker in speakers]
    takes = [take for index in range(n_speakers) for take in takes_of(index)]
    utterances = [
        vary(speakers[index], word, np.random.default_rng([seed, 1, clip]))
        for clip, (index, word, _) in enumerate(takes)
    ]
    for word in KEYWORDS + OTHER_WORDS + ("_background_noise_",):
        (folder / word).mkdir()
    paths: dict[str, list[str]] = {name: [] for name in names}
    for clip, speech in enumerate(with_progress(speak(utterances), len(utterances), "Speaking the demo corpus")):
        index, word, take = takes[clip]
        path = f"{word}/{names[index]}_nohash_{take}.wav"
        waveform = place(speech, np.random.default_rng([seed, 2, clip]))
        soundfile.write(folder / path, waveform, SAMPLE_RATE, subtype="PCM_16")
        paths[names[index]].append(path)
    for noise_name, waveform in background_noises(max(1, n_speakers // 5), seed):
        path = f"_background_noise_/{noise_name}.wav"
        soundfile.write(folder / path, waveform, SAMPLE_RATE, subtype="PCM_16")

    n_test, n_validation = max(1, n_speakers // 5), max(1, n_speakers // 8)
    held_out = {
        "testing_list.txt": names[:n_test],
        "validation_list.txt": names[n_test : n_test + n_validation],
    }
    for list_name, listed in held_out.items():
        lines = sorted(path for name in listed for path in paths[name])
        (folder / list_name).write_text("".join(f"{line}\n" for line in lines))


def name_of(speaker: Speaker, seed: int) -> str:
    """8 hexadecimal digits, as in Speech Commands."""
    return hashlib.sha256(f"{seed} {speaker.voice}".encode()).hexdigest()[:8]


def takes_of(speaker_index: int) -> list[tuple[int, str, int]]:
    """Utterances of a speaker, as (speaker index, word, take).

    Speaker 0 says the first four of the other words, speaker 1 the next four, and so on in turn.
    """
    first = speaker_index * OTHER_WORDS_PER_SPEAKER
    others = [OTHER_WORDS[(first + i) % len(OTHER_WORDS)] for i in range(OTHER_WORDS_PER_SPEAKER)]
    return [
        *((speaker_index, word, take) for word in KEYWORDS for take in range(KEYWORD_TAKES)),
        *((speaker_index, word, 0) for word in others),
    ]


def place(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put one spoken word somewhere in a second with some noise, at a random level.

    Shape: speech (any number of samples at 16 kHz) -> (16000,), float64 within [-1, 1].
    """
    speech = without_silence(speech)[:N_SAMPLES]
    onset = int(rng.uniform(0.1, 0.9) * (N_SAMPLES - len(speech)))
    waveform = np.zeros(N_SAMPLES)
    waveform[onset : onset + len(speech)] = speech / np.abs(speech).max()

    noise = coloured_noise(rng, N_SAMPLES, exponent=rng.uniform(0, 2), sample_rate=SAMPLE_RATE)
    snr_db = rng.uniform(15, 40)
    noise *= np.sqrt(np.mean(speech**2)) / np.abs(speech).max() * 10 ** (-snr_db / 20)
    waveform += noise
    peak = 10 ** (rng.uniform(-14, -1) / 20)  # -14 to -1 dB of full scale
    return peak * waveform / np.abs(waveform).max()


def background_noises(n_each: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """`n_each` noises of every kind, 4 to 10 seconds long, as (name, waveform within [-1, 1])."""
    for kind_index, kind in enumerate(NOISES):
        for number in range(n_each):
            rng = np.random.default_rng([seed, 3, kind_index, number])
            n_samples = int(rng.uniform(4, 10) * SAMPLE_RATE)
            noise = make_noise(kind, n_samples, rng, sample_rate=SAMPLE_RATE)
            peak = 10 ** (rng.uniform(-30, -3) / 20)
            yield f"{kind}_{number}", peak * noise / np.abs(noise).max()
