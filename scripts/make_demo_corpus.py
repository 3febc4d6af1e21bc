"""Make a small corpus of spoken words in the layout of Speech Commands.

    python scripts/make_demo_corpus.py --out corpora/demo

The words are synthetic: espeak-ng says them in many voices. One speaker is one voice variant with
an accent, a pitch and a speed of its own, and every take differs in pitch, speed, place in the
second, loudness and background noise. The same seed gives the same bytes.

espeak-ng is GPL-3.0, so it is loaded only in a child process (this file with ``--speak``) that is
told what to say as JSON and answers with samples; nothing else in openfl-audio links to it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
N_SAMPLES = 16_000  # every clip lasts exactly one second
CORPUS_VERSION = 1  # raise it when the same seed would give other bytes
MIN_SPEAKERS = 3  # one each for training, validation and test

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHER_WORDS = (
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "six", "tree", "wow", "zero",
)  # fmt: skip
KEYWORD_TAKES = 3
OTHER_WORDS_PER_SPEAKER = 4  # one take each: `_unknown_` stays below twice the size of a keyword

ACCENTS = (
    "gmw/en-US", "gmw/en", "gmw/en-GB-scotland", "gmw/en-GB-x-rp",
    "gmw/en-GB-x-gbclan", "gmw/en-GB-x-gbcwmd", "gmw/en-US-nyc", "gmw/en-029",
)  # fmt: skip
# espeak-ng's voice variants that sound like people, one of each family of near-copies.
VARIANTS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8",
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee",
    "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "Storm", "adam", "anika", "antonio",
    "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa",
    "ian", "iven", "john", "kaukovalta", "klatt2", "linda", "max", "michel", "miguel", "norbert",
    "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "zac",
)  # fmt: skip
NOISES = ("white_noise", "pink_noise", "brown_noise", "mains_hum", "clicks", "babble")


class DemoCorpusError(Exception):
    """The corpus cannot be made; the message is one sentence for the user."""


@dataclass(frozen=True)
class Speaker:
    """One voice. `pitch` and `pitch_range` are espeak-ng's 0 to 99, `rate` is words a minute."""

    name: str  # 8 hexadecimal digits, as in Speech Commands
    voice: str
    pitch: int
    pitch_range: int
    rate: int


@dataclass(frozen=True)
class Utterance:
    """One take of one word; all that espeak-ng has to know about it."""

    voice: str
    word: str
    pitch: int
    pitch_range: int
    rate: int
    seed: int


def make_demo_corpus(out: Path, *, n_speakers: int = 52, seed: int = 0) -> bool:
    """Write the corpus to `out`, which appears only when it is complete.

    Returns True when the corpus was made, and False when `out` already held a complete corpus of
    the same parameters. Raises `DemoCorpusError` when `out` holds anything else.
    """
    if not MIN_SPEAKERS <= n_speakers <= len(VARIANTS):
        raise DemoCorpusError(
            f"The number of speakers must be from {MIN_SPEAKERS} to {len(VARIANTS)}, not {n_speakers}."
        )
    if seed < 0:
        raise DemoCorpusError(f"The seed must not be negative, and it is {seed}.")
    parameters = {"version": CORPUS_VERSION, "n_speakers": n_speakers, "seed": seed}
    if is_complete(out, parameters):
        return False
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise DemoCorpusError(
            f"{out} exists and is not a demo corpus of {n_speakers} speakers and seed {seed}: "
            "remove it or choose another folder."
        )
    if importlib.util.find_spec("espeakng_loader") is None:
        raise DemoCorpusError("The demo corpus needs espeak-ng, which is not installed: pip install openfl-audio[demo]")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        write_corpus(partial, n_speakers=n_speakers, seed=seed)
        (partial / "corpus.json").write_text(json.dumps(parameters, indent=2) + "\n")
        partial.replace(out)
    except OSError as error:
        raise DemoCorpusError(f"The corpus cannot be written to {out}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def is_complete(folder: Path, parameters: dict[str, int]) -> bool:
    """Whether `folder` is a finished corpus that was made with these parameters."""
    try:
        return json.loads((folder / "corpus.json").read_text()) == parameters
    except (OSError, ValueError):
        return False


def write_corpus(folder: Path, *, n_speakers: int, seed: int) -> None:
    """Write every file but the completion marker `corpus.json`."""
    import soundfile

    speakers = choose_speakers(n_speakers, seed)
    takes = [take for index in range(n_speakers) for take in takes_of(index)]
    utterances = [
        vary(speakers[index], word, np.random.default_rng([seed, 1, clip]))
        for clip, (index, word, _) in enumerate(takes)
    ]
    for word in KEYWORDS + OTHER_WORDS + ("_background_noise_",):
        (folder / word).mkdir()
    paths: dict[str, list[str]] = {speaker.name: [] for speaker in speakers}
    for clip, speech in enumerate(with_progress(speak(utterances), len(utterances))):
        index, word, take = takes[clip]
        path = f"{word}/{speakers[index].name}_nohash_{take}.wav"
        waveform = place(speech, np.random.default_rng([seed, 2, clip]))
        soundfile.write(folder / path, waveform, SAMPLE_RATE, subtype="PCM_16")
        paths[speakers[index].name].append(path)
    for name, waveform in background_noises(max(1, n_speakers // 5), seed):
        path = f"_background_noise_/{name}.wav"
        soundfile.write(folder / path, waveform, SAMPLE_RATE, subtype="PCM_16")

    n_test, n_validation = max(1, n_speakers // 5), max(1, n_speakers // 8)
    held_out = {
        "testing_list.txt": speakers[:n_test],
        "validation_list.txt": speakers[n_test : n_test + n_validation],
    }
    for list_name, listed in held_out.items():
        lines = sorted(path for speaker in listed for path in paths[speaker.name])
        (folder / list_name).write_text("".join(f"{line}\n" for line in lines))


def choose_speakers(n_speakers: int, seed: int) -> list[Speaker]:
    """Every speaker has a voice variant of their own; the accents take turns."""
    rng = np.random.default_rng([seed, 0])
    speakers = []
    for index, variant in enumerate(rng.permutation(VARIANTS)[:n_speakers]):
        voice = f"{ACCENTS[index % len(ACCENTS)]}+{variant}"
        speakers.append(
            Speaker(
                name=hashlib.sha256(f"{seed} {voice}".encode()).hexdigest()[:8],
                voice=voice,
                pitch=int(rng.integers(38, 63)),
                pitch_range=int(rng.integers(35, 66)),
                rate=int(rng.integers(135, 176)),
            )
        )
    return speakers


def takes_of(speaker_index: int) -> list[tuple[int, str, int]]:
    """What a speaker says, as (speaker index, word, take).

    Speaker 0 says the first four of the other words, speaker 1 the next four, and so on in turn.
    """
    first = speaker_index * OTHER_WORDS_PER_SPEAKER
    others = [OTHER_WORDS[(first + i) % len(OTHER_WORDS)] for i in range(OTHER_WORDS_PER_SPEAKER)]
    return [
        *((speaker_index, word, take) for word in KEYWORDS for take in range(KEYWORD_TAKES)),
        *((speaker_index, word, 0) for word in others),
    ]


def vary(speaker: Speaker, word: str, rng: np.random.Generator) -> Utterance:
    """One take: nobody says a word twice with the same pitch, melody and speed."""
    return Utterance(
        voice=speaker.voice,
        word=word,
        pitch=int(speaker.pitch + rng.integers(-8, 9)),
        pitch_range=int(speaker.pitch_range + rng.integers(-15, 16)),
        rate=int(speaker.rate * rng.uniform(0.88, 1.15)),
        seed=int(rng.integers(1, 2**31)),
    )


def place(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put one spoken word somewhere in a second with some noise, at a random level.

    Shape: speech (any number of samples at 16 kHz) -> (16000,), float64 within [-1, 1].
    """
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = speech[loud[0] : loud[-1] + 1][:N_SAMPLES]
    onset = int(rng.uniform(0.1, 0.9) * (N_SAMPLES - len(speech)))
    waveform = np.zeros(N_SAMPLES)
    waveform[onset : onset + len(speech)] = speech / np.abs(speech).max()

    noise = coloured_noise(rng, N_SAMPLES, exponent=rng.uniform(0, 2))
    snr_db = rng.uniform(15, 40)
    noise *= np.sqrt(np.mean(speech**2)) / np.abs(speech).max() * 10 ** (-snr_db / 20)
    waveform += noise
    peak = 10 ** (rng.uniform(-14, -1) / 20)  # -14 to -1 dB of full scale
    return peak * waveform / np.abs(waveform).max()


def coloured_noise(rng: np.random.Generator, n_samples: int, *, exponent: float) -> np.ndarray:
    """Gaussian noise of unit power whose power falls as 1 / frequency ** exponent.

    Exponent 0 is white, 1 is pink and 2 is brown noise; nothing below 20 Hz.
    """
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    frequencies_hz = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE)
    gain = np.where(frequencies_hz < 20, 0, np.maximum(frequencies_hz, 20) ** (-exponent / 2))
    noise = np.fft.irfft(spectrum * gain, n_samples)
    return noise / np.sqrt(np.mean(noise**2))


def background_noises(n_each: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """`n_each` noises of every kind, 4 to 10 seconds long, as (name, waveform within [-1, 1])."""
    for kind_index, kind in enumerate(NOISES):
        for number in range(n_each):
            rng = np.random.default_rng([seed, 3, kind_index, number])
            n_samples = int(rng.uniform(4, 10) * SAMPLE_RATE)
            noise = make_noise(kind, n_samples, rng)
            peak = 10 ** (rng.uniform(-30, -3) / 20)
            yield f"{kind}_{number}", peak * noise / np.abs(noise).max()


def make_noise(kind: str, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """One noise of any scale. Shape: (n_samples,)."""
    exponents = {"white_noise": 0.0, "pink_noise": 1.0, "brown_noise": 2.0}
    if kind in exponents:
        return coloured_noise(rng, n_samples, exponent=exponents[kind])
    seconds = np.arange(n_samples) / SAMPLE_RATE
    noise = 0.1 * coloured_noise(rng, n_samples, exponent=1)
    if kind == "mains_hum":
        mains_hz = rng.choice([50, 60])
        for harmonic in range(1, 13):
            phase = rng.uniform(0, 2 * np.pi)
            gain = rng.uniform(0, 1) / harmonic
            noise += gain * np.sin(2 * np.pi * mains_hz * harmonic * seconds + phase)
    elif kind == "clicks":
        clicks = np.zeros(n_samples)
        places = rng.integers(0, n_samples, size=int(rng.uniform(3, 15) * seconds[-1]))
        clicks[places] = rng.uniform(-20, 20, size=len(places))
        decay = np.exp(-np.arange(400) / rng.uniform(5, 80))
        noise += np.convolve(clicks, decay)[:n_samples]
    elif kind == "babble":
        # Far-away talkers: noise in the bands of vowels that swells a few times a second.
        for _ in range(8):
            voice = coloured_noise(rng, n_samples, exponent=1) * np.sin(2 * np.pi * rng.uniform(300, 2500) * seconds)
            syllables_hz, phase = rng.uniform(2, 6), rng.uniform(0, 2 * np.pi)
            noise += voice * np.clip(np.sin(2 * np.pi * syllables_hz * seconds + phase), 0, 1)
    else:
        raise ValueError(f"unknown noise {kind!r}, known are {', '.join(NOISES)}")
    return noise


def with_progress(waveforms: Iterator[np.ndarray], total: int) -> Iterator[np.ndarray]:
    """The same items, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return iter(track(waveforms, "Speaking the demo corpus", total=total, console=Console(stderr=True)))


# The child process and the way to it


def speak(utterances: list[Utterance]) -> Iterator[np.ndarray]:
    """Have a child process say the utterances; yields one waveform each, at 16 kHz.

    The child answers with its sample rate, then for each utterance the number of bytes and that
    many bytes of 16-bit samples; numbers are 32-bit little-endian.
    """
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as complaints:
        request.write(json.dumps([asdict(utterance) for utterance in utterances]).encode())
        request.seek(0)
        with subprocess.Popen(
            [sys.executable, __file__, "--speak"],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as child:
            reply: Any = child.stdout
            try:
                (rate,) = struct.unpack("<I", reply.read(4))
                for _ in utterances:
                    (n_bytes,) = struct.unpack("<I", reply.read(4))
                    samples = np.frombuffer(reply.read(n_bytes), "<i2")
                    yield resample(samples / 32768, rate)
            except struct.error as error:  # the child ended early
                child.wait()
                complaints.seek(0)
                reason = complaints.read().decode(errors="replace").strip() or "no reason given"
                raise DemoCorpusError(f"espeak-ng stopped: {reason}") from error
            finally:
                child.kill()


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """To 16 kHz through the spectrum, after padding with silence to whole seconds."""
    seconds = -(-len(waveform) // rate)
    spectrum = np.fft.rfft(waveform, seconds * rate)
    n_samples = seconds * SAMPLE_RATE
    return np.fft.irfft(spectrum[: n_samples // 2 + 1], n_samples) * (SAMPLE_RATE / rate)


def speak_in_this_process() -> None:
    """The child: read utterances from stdin, write sample rate and samples to stdout."""
    import espeakng_loader

    utterances = [Utterance(**fields) for fields in json.load(sys.stdin)]
    # espeak-ng keeps the path of its data in 160 bytes, and a virtual environment can lie deep.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
        engine = Engine(espeakng_loader.get_library_path(), Path(folder))
        sys.stdout.buffer.write(struct.pack("<I", engine.rate))
        for utterance in utterances:
            samples = engine.say(utterance)
            sys.stdout.buffer.write(struct.pack("<I", len(samples)) + samples)


class Engine:
    """libespeak-ng through ctypes; the numbers are those of its speak_lib.h."""

    AUDIO_OUTPUT_SYNCHRONOUS = 2  # no playback: samples go to a callback
    DONT_EXIT = 0x8000
    RATE, PITCH, RANGE = 1, 3, 4
    CHARS_UTF8 = 1

    def __init__(self, library: str, data_parent: Path) -> None:
        self.chunks: list[bytes] = []
        self.library: Any = ctypes.CDLL(library)
        self.rate: int = self.library.espeak_Initialize(
            self.AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_parent), self.DONT_EXIT
        )
        if self.rate <= 0:
            raise SystemExit(f"its data cannot be loaded from {data_parent}")
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = callback_type(self.collect)  # kept: ctypes does not hold a reference
        self.library.espeak_SetSynthCallback(self.callback)

    def collect(self, samples: Any, n_samples: int, events: Any) -> int:
        if samples and n_samples > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * n_samples))
        return 0  # go on

    def say(self, utterance: Utterance) -> bytes:
        """16-bit mono samples of one word."""
        self.chunks.clear()
        if self.library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise SystemExit(f"it has no voice {utterance.voice!r}")
        self.library.espeak_SetParameter(self.RATE, utterance.rate, 0)
        self.library.espeak_SetParameter(self.PITCH, utterance.pitch, 0)
        self.library.espeak_SetParameter(self.RANGE, utterance.pitch_range, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(utterance.seed))
        text = ctypes.create_string_buffer(utterance.word.encode())
        status = self.library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, self.CHARS_UTF8, None, None)
        if status != 0 or not self.chunks:
            raise SystemExit(f"it cannot say {utterance.word!r} as {utterance.voice!r}")
        return b"".join(self.chunks)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a small corpus of spoken words.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--speakers", type=int, default=52, help="number of voices (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        made = make_demo_corpus(options.out, n_speakers=options.speakers, seed=options.seed)
    except DemoCorpusError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.out}: {'made' if made else 'is there already'}.")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--speak"]:
        speak_in_this_process()
    else:
        sys.exit(main())
