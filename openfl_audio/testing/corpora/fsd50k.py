"""A corpus of synthetic sound events in the layout of FSD50K.

    FSD50K.dev_audio/<fname>.wav, FSD50K.eval_audio/<fname>.wav      44.1 kHz, 16 bit, mono
    FSD50K.ground_truth/{dev,eval,vocabulary}.csv
    FSD50K.metadata/{dev,eval}_clips_info_FSD50K.json                with the uploader of every clip

Class names and ids are those of the published vocabulary (Fonseca et al., "FSD50K: an open dataset of human-labeled
sound events", TASLP 30, 2022; zenodo.org/records/4060432), and every clip has its class's ancestors as labels.
Uploaders differ as they do on Freesound: in how many clips they have, in what they record and in how it sounds. Those
of the eval set have no clip in the dev set.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openfl_audio.errors import DemoCorpusError
from openfl_audio.testing.corpora.output import check_count, check_seed, make_folder, with_progress
from openfl_audio.testing.corpora.recordings import Recording, record
from openfl_audio.testing.corpora.sound_events import SAMPLE_RATE, SOUNDS

CORPUS_VERSION = 1  # raise it when the same seed would give other bytes
DEV_UPLOADERS, EVAL_UPLOADERS = 20, 10
VALIDATION_SHARE = 0.15
TWO_EVENTS_SHARE = 0.15
DURATION_S = (0.3, 12.0)
MEDIAN_SECONDS = 1.4
# Weight of a leaf class in an uploader's taste: the smaller, the fewer classes an uploader records.
DIRICHLET_CONCENTRATION = 0.4
LICENSE = "http://creativecommons.org/publicdomain/zero/1.0/"

# Leaf class -> its ancestors, nearest first.
ANCESTORS: dict[str, tuple[str, ...]] = {
    "Applause": ("Human_group_actions",),
    "Bark": ("Dog", "Domestic_animals_and_pets", "Animal"),
    "Chirp_and_tweet": ("Bird_vocalization_and_bird_call_and_bird_song", "Bird", "Wild_animals", "Animal"),
    "Church_bell": ("Bell",),
    "Clapping": ("Hands",),
    "Computer_keyboard": ("Typing", "Domestic_sounds_and_home_sounds"),
    "Cricket": ("Insect", "Wild_animals", "Animal"),
    "Female_speech_and_woman_speaking": ("Speech", "Human_voice"),
    "Idling": ("Engine",),
    "Knock": ("Door", "Domestic_sounds_and_home_sounds"),
    "Male_speech_and_man_speaking": ("Speech", "Human_voice"),
    "Meow": ("Cat", "Domestic_animals_and_pets", "Animal"),
    "Rain": ("Water",),
    "Siren": ("Alarm",),
    "Thunder": ("Thunderstorm",),
    "Tick-tock": ("Clock", "Mechanisms"),
    "Waves_and_surf": ("Ocean", "Water"),
    "Wind": (),
}
LEAVES = tuple(ANCESTORS)
# Ids of the AudioSet ontology.
MIDS = {
    "Alarm": "/m/07pp_mv", "Animal": "/m/0jbk", "Applause": "/m/028ght", "Bark": "/m/05tny_", "Bell": "/m/0395lw",
    "Bird": "/m/015p6", "Bird_vocalization_and_bird_call_and_bird_song": "/m/020bb7", "Cat": "/m/01yrx",
    "Chirp_and_tweet": "/m/07pggtn", "Church_bell": "/m/03w41f", "Clapping": "/m/0l15bq", "Clock": "/m/01x3z",
    "Computer_keyboard": "/m/01m2v", "Cricket": "/m/09xqv", "Dog": "/m/0bt9lr", "Domestic_animals_and_pets": "/m/068hy",
    "Domestic_sounds_and_home_sounds": "/t/dd00071", "Door": "/m/02dgv", "Engine": "/m/02mk9",
    "Female_speech_and_woman_speaking": "/m/02zsn", "Hands": "/m/0k65p", "Human_group_actions": "/t/dd00012",
    "Human_voice": "/m/09l8g", "Idling": "/m/07pb8fc", "Insect": "/m/03vt0", "Knock": "/m/07r4wb8",
    "Male_speech_and_man_speaking": "/m/05zppz", "Mechanisms": "/t/dd00077", "Meow": "/m/07qrkrw", "Ocean": "/m/05kq4",
    "Rain": "/m/06mb1", "Siren": "/m/03kmc9", "Speech": "/m/09x0r", "Thunder": "/m/0ngt1", "Thunderstorm": "/m/0jb2l",
    "Tick-tock": "/m/07qjznl", "Typing": "/m/0316dw", "Water": "/m/0838f", "Waves_and_surf": "/m/034srq",
    "Wild_animals": "/m/01280g", "Wind": "/m/03m9d0z",
}  # fmt: skip


@dataclass(frozen=True)
class Uploader:
    """One recordist. `taste` is the probability of each class of `LEAVES`."""

    name: str
    taste: np.ndarray
    recording: Recording


@dataclass(frozen=True)
class Clip:
    """One file. `leaves` are the one or two classes heard in it; `split` is train, val or (of the eval set) empty."""

    fname: str
    leaves: tuple[str, ...]
    uploader: Uploader
    split: str

    @property
    def labels(self) -> list[str]:
        """The leaves, then what they are kinds of, nearest first and each once: the order of the published files."""
        ancestors = (ancestor for leaf in self.leaves for ancestor in ANCESTORS[leaf])
        return list(dict.fromkeys([*self.leaves, *ancestors]))


def make_fsd50k(
    out: Path,
    *,
    n_dev_clips: int = 400,
    n_eval_clips: int = 100,
    median_seconds: float = MEDIAN_SECONDS,
    seed: int = 0,
) -> bool:
    """Write the corpus to `out`, which appears only when it is complete.

    Half of the clips are longer than `median_seconds`; all are between 0.3 and 12 s.

    Returns True when the corpus was made, and False when `out` already held a complete corpus of the same parameters.
    Raises `DemoCorpusError` when `out` holds anything else, for a median that is no such length, or for fewer clips
    than it takes to have every class in train, validation and evaluation.
    """
    check_count("clips of the dev set", n_dev_clips, 2 * len(LEAVES))
    check_count("clips of the eval set", n_eval_clips, len(LEAVES))
    check_seed(seed)
    shortest, longest = DURATION_S
    if not shortest <= median_seconds <= longest:
        raise DemoCorpusError(
            f"The median length of a clip must be from {shortest} to {longest} seconds, not {median_seconds}."
        )
    parameters = {
        "layout": "fsd50k",
        "version": CORPUS_VERSION,
        "n_dev_clips": n_dev_clips,
        "n_eval_clips": n_eval_clips,
        "median_seconds": median_seconds,
        "seed": seed,
    }
    return make_folder(
        out,
        parameters,
        f"{n_dev_clips} and {n_eval_clips} clips of {median_seconds} s in FSD50K's layout and seed {seed}",
        lambda folder: write_corpus(folder, n_dev_clips, n_eval_clips, median_seconds, seed),
    )


def write_corpus(folder: Path, n_dev_clips: int, n_eval_clips: int, median_seconds: float, seed: int) -> None:
    """Write every file but the completion marker `corpus.json`."""
    import soundfile

    uploaders = choose_uploaders(DEV_UPLOADERS + EVAL_UPLOADERS, np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    fnames = [str(number) for number in rng.choice(np.arange(100, 420_000), n_dev_clips + n_eval_clips, replace=False)]
    dev = plan_clips(fnames[:n_dev_clips], uploaders[:DEV_UPLOADERS], VALIDATION_SHARE, rng)
    evaluation = plan_clips(fnames[n_dev_clips:], uploaders[DEV_UPLOADERS:], None, rng)

    for subset, clips in (("dev", dev), ("eval", evaluation)):
        (folder / f"FSD50K.{subset}_audio").mkdir()
        for clip in with_progress(clips, len(clips), f"Making the sounds of FSD50K.{subset}_audio"):
            waveform = make_clip(clip, median_seconds, np.random.default_rng([seed, 2, int(clip.fname)]))
            path = folder / f"FSD50K.{subset}_audio" / f"{clip.fname}.wav"
            soundfile.write(path, waveform, SAMPLE_RATE, subtype="PCM_16")

    (folder / "FSD50K.ground_truth").mkdir()
    (folder / "FSD50K.metadata").mkdir()
    write_ground_truth(folder / "FSD50K.ground_truth" / "dev.csv", dev, with_split=True)
    write_ground_truth(folder / "FSD50K.ground_truth" / "eval.csv", evaluation, with_split=False)
    vocabulary = [f"{index},{name},{MIDS[name]}\n" for index, name in enumerate(sorted(MIDS))]
    (folder / "FSD50K.ground_truth" / "vocabulary.csv").write_text("".join(vocabulary))
    write_clips_info(folder / "FSD50K.metadata" / "dev_clips_info_FSD50K.json", dev)
    write_clips_info(folder / "FSD50K.metadata" / "eval_clips_info_FSD50K.json", evaluation)


def choose_uploaders(n_uploaders: int, rng: np.random.Generator) -> list[Uploader]:
    """Make uploaders, from good microphones in quiet rooms to telephones in noise; each prefers a few classes."""
    return [
        Uploader(
            name=f"recordist_{number:02d}",
            taste=rng.dirichlet(np.full(len(LEAVES), DIRICHLET_CONCENTRATION)),
            recording=Recording(
                low_cut_hz=rng.uniform(30, 200),
                high_cut_hz=np.exp(rng.uniform(np.log(3500), np.log(18_000))),
                rt60_s=rng.uniform(0.1, 0.9),
                wet=rng.uniform(0.02, 0.4),
                noise_exponent=rng.uniform(0, 2),
                snr_db=rng.uniform(5, 35),
                peak_db=rng.uniform(-12, -0.5),
            ),
        )
        for number in range(1, n_uploaders + 1)
    ]


def plan_clips(
    fnames: Sequence[str], uploaders: Sequence[Uploader], validation_share: float | None, rng: np.random.Generator
) -> list[Clip]:
    """Plan which uploader has which clip with which classes; every class is in every split at least once."""
    sizes = zipf_mandelbrot_sizes(len(fnames), len(uploaders))
    owners = np.repeat(np.arange(len(uploaders)), sizes)
    tastes = np.stack([uploader.taste for uploader in uploaders])
    n_splits = 1 if validation_share is None else 2
    leaves = draw_leaves(tastes[owners], n_splits, rng)
    splits = draw_splits(leaves, validation_share, rng)
    clips = []
    for fname, owner, leaf, split in zip(fnames, owners, leaves, splits, strict=True):
        heard = [LEAVES[leaf]]
        second = LEAVES[rng.choice(len(LEAVES), p=tastes[owner])]
        if rng.random() < TWO_EVENTS_SHARE and second not in heard:
            heard.append(second)
        clips.append(Clip(fname, tuple(heard), uploaders[owner], split))
    # The published tables are sorted by class, so that clips of one uploader lie far apart.
    return sorted(clips, key=lambda clip: clip.leaves)


def zipf_mandelbrot_sizes(total: int, n_parts: int) -> np.ndarray:
    """Cut `total` into parts in proportion to 1 / (rank + 8) ** 4, each at least 1: int64 (n_parts,), falling.

    400 in 20 parts: 111, 73, 50, ... 3, 2, 2. After Mandelbrot's law of word frequencies, with ranks as words.
    """
    weights = 1 / (np.arange(1, n_parts + 1) + 8.0) ** 4
    ideal = (total - n_parts) * weights / weights.sum()
    sizes = 1 + ideal.astype(np.int64)
    largest_remainders = np.argsort(ideal.astype(np.int64) - ideal, kind="stable")
    sizes[largest_remainders[: total - sizes.sum()]] += 1
    return sizes


def draw_leaves(tastes: np.ndarray, n_each: int, rng: np.random.Generator) -> np.ndarray:
    """A leaf class for each clip by the taste of its uploader, every class `n_each` times at least.

    Shape: tastes (clips, leaves) -> int64 (clips,). The clips that a class is sure to have are drawn first, among those
    of all uploaders, in proportion to their taste for it.
    """
    leaves = np.full(len(tastes), -1)
    for leaf in np.tile(np.arange(tastes.shape[1]), n_each):
        free = np.flatnonzero(leaves < 0)
        liking = tastes[free, leaf]
        leaves[rng.choice(free, p=liking / liking.sum())] = leaf
    for clip in np.flatnonzero(leaves < 0):
        leaves[clip] = rng.choice(tastes.shape[1], p=tastes[clip])
    return leaves


def draw_splits(leaves: np.ndarray, validation_share: float | None, rng: np.random.Generator) -> list[str]:
    """Return "train" or "val" for each clip: of every class that share of its clips, and one at least, is val."""
    if validation_share is None:
        return [""] * len(leaves)
    splits = np.full(len(leaves), "train")
    for leaf in np.unique(leaves):
        clips = rng.permutation(np.flatnonzero(leaves == leaf))
        splits[clips[: max(1, round(validation_share * len(clips)))]] = "val"
    return splits.tolist()


def make_clip(clip: Clip, median_seconds: float, rng: np.random.Generator) -> np.ndarray:
    """The clip as its uploader recorded it. Shape: (samples,) at 44.1 kHz, within [-1, 1]."""
    duration_s = np.clip(rng.lognormal(np.log(median_seconds), 0.75), *DURATION_S)
    n_samples = round(duration_s * SAMPLE_RATE)
    waveform = np.zeros(n_samples)
    for leaf in clip.leaves:
        sound = SOUNDS[leaf](rng, n_samples)
        waveform += 10 ** (rng.uniform(-4, 4) / 20) * sound / np.sqrt(np.mean(sound**2))
    return record(waveform, clip.uploader.recording, rng, sample_rate=SAMPLE_RATE)


def write_ground_truth(path: Path, clips: Iterable[Clip], *, with_split: bool) -> None:
    """One line for each clip; several labels are one field in quotes, as they are separated by commas."""
    header = ["fname", "labels", "mids", "split"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header if with_split else header[:-1])
        for clip in clips:
            row = [clip.fname, ",".join(clip.labels), ",".join(MIDS[label] for label in clip.labels), clip.split]
            writer.writerow(row if with_split else row[:-1])


def write_clips_info(path: Path, clips: Iterable[Clip]) -> None:
    """Write Freesound's description of each clip, by its fname."""
    info = {
        clip.fname: {
            "title": " and ".join(clip.leaves),
            "description": "made by a program",
            "tags": list(clip.leaves),
            "license": LICENSE,
            "uploader": clip.uploader.name,
        }
        for clip in clips
    }
    path.write_text(json.dumps(info, indent=4) + "\n")
