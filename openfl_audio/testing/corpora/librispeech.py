"""A corpus of synthetic read sentences in the layout of LibriSpeech.

    SPEAKERS.TXT
    <subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac      16 kHz, mono
    <subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt          upper-case transcripts

The subsets are train-clean-100, dev-clean and test-clean (Panayotov et al., "LibriSpeech: an ASR corpus based on public
domain audio books", ICASSP 2015; openslr.org/12). A speaker is a voice of espeak-ng with a room, a microphone and a
level of their own, and is in one subset only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openfl_audio.testing.corpora.output import check_count, check_seed, make_folder, with_progress
from openfl_audio.testing.corpora.recordings import Recording, record
from openfl_audio.testing.corpora.sentences import make_number, make_sentence
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

CORPUS_VERSION = 1  # raise it when the same seed would give other bytes
# Draws what somebody reads.
MakeText = Callable[[np.random.Generator], str]


@dataclass(frozen=True)
class Reader:
    """One speaker of the corpus, under the number that the folder has."""

    number: int
    subset: str
    voice: Speaker
    recording: Recording


@dataclass(frozen=True)
class Sentence:
    """One FLAC file: `number` counts from 0 within a reader's chapter."""

    reader: Reader
    chapter: int
    number: int
    text: str

    @property
    def folder(self) -> str:
        """Return the folder of the recording, as LibriSpeech has it: subset/speaker/chapter."""
        return f"{self.reader.subset}/{self.reader.number}/{self.chapter}"

    @property
    def name(self) -> str:
        """Return the name of the recording: speaker-chapter-number."""
        return f"{self.reader.number}-{self.chapter}-{self.number:04d}"


def make_librispeech(
    out: Path,
    *,
    n_train_speakers: int = 24,
    n_dev_speakers: int = 6,
    n_test_speakers: int = 6,
    n_utterances: int = 12,
    numbers: bool = False,
    seed: int = 0,
) -> bool:
    """Write the corpus to `out`, which appears only when it is complete; every speaker reads `n_utterances` sentences.

    With `numbers` they read numbers instead, digit by digit.

    Returns True when the corpus was made, and False when `out` already held a complete corpus of the same parameters.
    Raises `DemoCorpusError` when `out` holds anything else, or for more speakers than there are voices.
    """
    n_speakers = {"train-clean-100": n_train_speakers, "dev-clean": n_dev_speakers, "test-clean": n_test_speakers}
    for subset, count in n_speakers.items():
        check_count(f"speakers of {subset}", count, 1)
    check_count("speakers of all subsets", sum(n_speakers.values()), 3, len(VARIANTS))
    check_count("utterances of a speaker", n_utterances, 1, 1000)
    check_seed(seed)
    parameters = {
        "layout": "librispeech",
        "version": CORPUS_VERSION,
        "n_speakers": n_speakers,
        "n_utterances": n_utterances,
        "seed": seed,
    } | ({"numbers": True} if numbers else {})
    read = make_number if numbers else make_sentence
    return make_folder(
        out,
        parameters,
        f"{n_train_speakers}, {n_dev_speakers} and {n_test_speakers} speakers of {n_utterances} utterances each "
        f"in LibriSpeech's layout and seed {seed}",
        lambda folder: write_corpus(folder, n_speakers, n_utterances=n_utterances, seed=seed, make_text=read),
    )


def write_corpus(
    folder: Path, n_speakers: dict[str, int], *, n_utterances: int, seed: int, make_text: MakeText = make_sentence
) -> None:
    """Write every file but the completion marker `corpus.json`. `n_speakers` is the number for each subset."""
    import soundfile

    check_espeak()
    readers = choose_readers(n_speakers, seed)
    sentences = plan_sentences(readers, n_utterances, np.random.default_rng([seed, 2]), make_text)
    utterances = [
        vary(sentence.reader.voice, sentence.text, np.random.default_rng([seed, 3, index]))
        for index, sentence in enumerate(sentences)
    ]
    samples_of = dict.fromkeys(readers, 0)
    spoken = with_progress(speak(utterances), len(utterances), "Reading the demo corpus")
    for index, (sentence, speech) in enumerate(zip(sentences, spoken, strict=True)):
        waveform = read_out(speech, sentence.reader.recording, np.random.default_rng([seed, 4, index]))
        path = folder / sentence.folder
        path.mkdir(parents=True, exist_ok=True)
        soundfile.write(path / f"{sentence.name}.flac", waveform, SAMPLE_RATE, subtype="PCM_16")
        with (path / f"{sentence.reader.number}-{sentence.chapter}.trans.txt").open("a") as transcripts:
            transcripts.write(f"{sentence.name} {sentence.text.upper()}\n")
        samples_of[sentence.reader] += len(waveform)
    minutes = [samples_of[reader] / SAMPLE_RATE / 60 for reader in readers]
    write_speakers(folder / "SPEAKERS.TXT", readers, minutes)


def choose_readers(n_speakers: dict[str, int], seed: int) -> list[Reader]:
    """The readers of every subset, each with a voice, a number and a recording of their own."""
    subsets = [subset for subset, count in n_speakers.items() for _ in range(count)]
    rng = np.random.default_rng([seed, 1])
    numbers = rng.choice(np.arange(14, 9000), len(subsets), replace=False)
    return [
        Reader(
            number=int(number),
            subset=subset,
            voice=voice,
            recording=Recording(
                low_cut_hz=rng.uniform(40, 120),
                high_cut_hz=rng.uniform(5500, 7800),
                rt60_s=rng.uniform(0.1, 0.5),
                wet=rng.uniform(0.01, 0.15),
                noise_exponent=rng.uniform(0.5, 2),
                snr_db=rng.uniform(20, 40),
                peak_db=rng.uniform(-14, -3),
            ),
        )
        for number, subset, voice in zip(numbers, subsets, choose_speakers(len(subsets), seed), strict=True)
    ]


def plan_sentences(
    readers: Sequence[Reader], n_utterances: int, rng: np.random.Generator, make_text: MakeText = make_sentence
) -> list[Sentence]:
    """Plan the chapters of all speakers, one or two of each; no two chapters have the same number."""
    chapters = iter(rng.choice(np.arange(100, 150_000), 2 * len(readers), replace=False).tolist())
    sentences = []
    for reader in readers:
        first_part = n_utterances if rng.random() < 0.5 else n_utterances // 2
        for length in (first_part, n_utterances - first_part):
            chapter = next(chapters)
            sentences += [Sentence(reader, chapter, number, make_text(rng)) for number in range(length)]
    return sentences


def read_out(speech: np.ndarray, recording: Recording, rng: np.random.Generator) -> np.ndarray:
    """The sentence as it was recorded, with a moment before and after. Shape: (samples,) -> (more samples,)."""
    before, after = (int(rng.uniform(0.1, 0.4) * SAMPLE_RATE) for _ in range(2))
    return record(np.pad(without_silence(speech), (before, after)), recording, rng, sample_rate=SAMPLE_RATE)


def write_speakers(path: Path, readers: Sequence[Reader], minutes: Sequence[float]) -> None:
    """The published table: comments begin with a semicolon, columns are separated by bars."""
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for reader, spoken in sorted(zip(readers, minutes, strict=True), key=lambda pair: pair[0].number):
        name = reader.voice.voice.rpartition("/")[2].replace("+", " ")
        lines.append(f"{reader.number:<5}| {reader.voice.sex} | {reader.subset:<17}| {spoken:<5.2f} | {name}")
    path.write_text("".join(f"{line}\n" for line in lines))
