"""Recordings of three sites as people keep them: spoken words, each site with its own table, formats and slips.

Nothing here knows how they will be read. The first site has a spreadsheet's CSV (a byte order mark, semicolons) and
files whose names came from macOS; the second a CSV with splits, paths from Windows, labels written its own way, one
recording in two splits and one that is AAC; the third a folder for each word. A fourth folder has speakers of no site.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openfl_audio.testing.corpora.noises import coloured_noise
from openfl_audio.testing.corpora.output import check_count, check_seed, make_folder
from openfl_audio.testing.corpora.voices import (
    SAMPLE_RATE,
    check_espeak,
    choose_speakers,
    speak,
    vary,
    without_silence,
)

CORPUS_VERSION = 1  # raise it when the same seed would give other bytes
WORDS = ("yes", "no", "stop", "go")
SITES = ("clinic", "school", "archive", "unseen")
TAKES = 5
# As the second and the third site write them.
SCHOOL_WORDS = {"yes": "Yes", "no": "no ", "stop": "stop", "go": "go"}
ARCHIVE_WORDS = {"yes": "yes", "no": "no", "stop": "stop", "go": "GO"}


def make_own_data(out: Path, *, n_speakers: int = 12, seed: int = 0) -> bool:
    """Write the corpus to `out`, with `n_speakers` at each site; `out` appears only when it is complete.

    Returns True when the corpus was made, and False when `out` already held a complete corpus of the same parameters.
    Raises `DemoCorpusError` when `out` holds anything else.
    """
    check_count("speakers of a site", n_speakers, 3, 16)
    check_seed(seed)
    return make_folder(
        out,
        {"version": CORPUS_VERSION, "n_speakers": n_speakers, "seed": seed},
        f"{n_speakers} speakers at each site and seed {seed}",
        lambda folder: write_corpus(folder, n_speakers=n_speakers, seed=seed),
    )


def write_corpus(folder: Path, *, n_speakers: int, seed: int) -> None:
    """Write every file but the completion marker `corpus.json`."""
    check_espeak()
    speakers = choose_speakers(len(SITES) * n_speakers, seed)
    takes = [(index, word, take) for index in range(len(speakers)) for word in WORDS for take in range(TAKES)]
    utterances = [
        vary(speakers[index], word, np.random.default_rng([seed, 1, clip]))
        for clip, (index, word, _) in enumerate(takes)
    ]
    writers = (Clinic, School, Archive, Unseen)
    sites = [writer(folder / site, n_speakers) for writer, site in zip(writers, SITES, strict=True)]
    for clip, ((index, word, take), speech) in enumerate(zip(takes, speak(utterances), strict=True)):
        waveform = place(speech, np.random.default_rng([seed, 2, clip]))
        # Speakers are dealt out in turn, so that each site has all accents.
        sites[index % len(SITES)].add(waveform, word, index // len(SITES), take)
    for site in sites:
        site.finish()


def place(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a word into some silence and noise, at a random level: (samples,) -> about 0.8 s, float64 within [-1, 1]."""
    speech = without_silence(speech)[: int(0.75 * SAMPLE_RATE)]
    waveform = np.zeros(int(rng.uniform(0.78, 0.95) * SAMPLE_RATE))
    onset = int(rng.uniform(0, 1) * (len(waveform) - len(speech)))
    waveform[onset : onset + len(speech)] = speech / np.abs(speech).max()
    noise = coloured_noise(rng, len(waveform), exponent=1.0, sample_rate=SAMPLE_RATE)
    waveform += noise * np.sqrt(np.mean(waveform**2)) * 10 ** (-rng.uniform(15, 35) / 20)
    return 10 ** (rng.uniform(-12, -2) / 20) * waveform / np.abs(waveform).max()


class Site:
    """A site that keeps its recordings below `folder`, in its own way."""

    def __init__(self, folder: Path, n_speakers: int) -> None:
        self.folder, self.n_speakers = folder, n_speakers
        self.rows: list[str] = []
        folder.mkdir()

    def add(self, waveform: np.ndarray, word: str, speaker: int, take: int) -> None:
        """Keep one recording."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is written last."""

    def write(self, name: str, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
        """Write a sound file below the folder, in the format that its name ends with."""
        import soundfile

        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, sample_rate)

    def write_rows(self, name: str, header: str, rows: Sequence[str], encoding: str) -> None:
        """Write a table."""
        (self.folder / name).write_bytes("".join(f"{row}\r\n" for row in (header, *rows)).encode(encoding))


class Clinic(Site):
    """A spreadsheet: a byte order mark, semicolons, German headers, and accents composed where the files' are not."""

    def add(self, waveform: np.ndarray, word: str, speaker: int, take: int) -> None:
        """Keep one recording."""
        name = f"Aufnahmen/Hörer {speaker + 1}/{word}_{take}.wav"
        self.write(unicodedata.normalize("NFD", name), waveform)
        self.rows.append(f"{unicodedata.normalize('NFC', name)};{word};P{speaker + 1:02}")

    def finish(self) -> None:
        """Write the table."""
        self.write_rows("Aufnahmen.csv", "Datei;Wort;Patient", self.rows, "utf-8-sig")


class School(Site):
    """A table with splits and paths of Windows, stereo at 32 kHz, a recording in two splits, and one that is AAC."""

    def add(self, waveform: np.ndarray, word: str, speaker: int, take: int) -> None:
        """Keep one recording."""
        from scipy.signal import resample_poly

        name = f"clips/{word}/child{speaker}-{take}.flac"
        self.write(name, np.stack([resample_poly(waveform, 2, 1)] * 2, axis=1) * 0.9, 2 * SAMPLE_RATE)
        held_out = {0: "test", 1: "val"}.get(speaker, "train")
        self.rows.append(f"{name.replace('/', chr(92))},{SCHOOL_WORDS[word]},child{speaker},{held_out}")

    def finish(self) -> None:
        """Copy a recording of the test split into train, add a voice memo, and write the table."""
        copied = self.folder / "clips/yes/child0-0.flac"
        copied.with_name("extra.flac").write_bytes(copied.read_bytes())
        # The beginning of an MPEG-4 file, which is all that tells its format.
        (self.folder / "clips" / "memo.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + bytes(512))
        extra = ["clips\\yes\\extra.flac,Yes,child2,train", "clips\\memo.m4a,stop,child3,train"]
        self.write_rows("clips.csv", "path,label,speaker,split", [*self.rows, *extra], "utf-8")


class Archive(Site):
    """A folder for each word, one of them in capitals, in OGG."""

    words = ARCHIVE_WORDS

    def add(self, waveform: np.ndarray, word: str, speaker: int, take: int) -> None:
        """Keep one recording."""
        self.write(f"{self.words[word]}/voice{speaker}_{take}.ogg", waveform)


class Unseen(Archive):
    """The same, without a slip."""

    words = dict(zip(WORDS, WORDS, strict=True))  # noqa: RUF012
