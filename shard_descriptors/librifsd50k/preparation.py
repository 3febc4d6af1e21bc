"""LibriFSD50K and FedWHAM as FedEnhance makes them: speech of one speaker a folder, each utterance with a noise.

Tzinis et al., "Separate but Together: Unsupervised Federated Learning for Speech Enhancement from Non-IID Data",
WASPAA 2021 (arXiv 2105.04727), and its recipes in github.com/etzinis/fedenhance. Which recordings meet is planned from
names alone and is a function of the folders and the seed; then pairs are written one by one.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import soundfile

from openfl_audio.files import replacing
from shard_descriptors.common.audio import decode, read_waveform
from shard_descriptors.common.errors import AudioError, CorpusError
from shard_descriptors.common.files import list_recordings, name_key
from shard_descriptors.common.text import read_columns
from shard_descriptors.fsd50k.layout import DEVELOPMENT, EVALUATION, Part, files_by_clip
from shard_descriptors.librifsd50k.store import (
    CHUNK_SAMPLES,
    FOLDERS,
    MIN_PAIRS,
    SAMPLE_RATE,
    Pair,
    Plan,
    Written,
    write_store,
)
from shard_descriptors.librispeech.layout import SUBSETS, Utterance, read_librispeech

# FedEnhance's list: clips with one of these labels are no noise to a listener who wants to hear speech.
SPEECH_LABELS = frozenset(
    {
        "Breathing", "Burping_and_eructation", "Chatter", "Cheering", "Child_speech_and_kid_speaking",
        "Chuckle_and_chortle", "Conversation", "Cough", "Crowd", "Crying_and_sobbing", "Female_singing",
        "Female_speech_and_woman_speaking", "Giggle", "Human_group_actions", "Human_voice", "Laughter", "Male_singing",
        "Male_speech_and_man_speaking", "Respiratory_sounds", "Screaming", "Shout", "Sigh", "Singing", "Sneeze",
        "Speech", "Speech_synthesizer", "Whispering", "Yell",
    }
)  # fmt: skip
SPEECH_SUBSETS = {
    "train": ("train-clean-100", "train-clean-360"),
    "validation": ("dev-clean",),
    "test": ("test-clean",),
}
WHAM_FOLDERS = {"train": "tr", "validation": "cv", "test": "tt"}
VALIDATION_NOISE_SHARE = 0.1  # of FSD50K's dev clips
HELD_OUT_SHARE = 0.1  # of the train speakers, or clips, for each split that has none of its own


class Clip(NamedTuple):
    """A clip of FSD50K: its file relative to the corpus and its labels, the most general one last."""

    file: str
    labels: tuple[str, ...]


class _Spoken(NamedTuple):
    """An utterance of WHAM with its noise."""

    speaker: str
    speech: str
    noise: str


_T = TypeVar("_T", Utterance, _Spoken)


def prepare_librifsd50k(
    librispeech: str | Path,
    fsd50k: str | Path,
    out: str | Path,
    seed: int = 0,
    workers: int = 1,
    clips_per_utterance: int | None = None,
) -> dict[str, Any]:
    """Write LibriFSD50K into the folder `out`; the report says what is in it. See `write_store` about resuming."""
    plan = plan_librifsd50k(librispeech, fsd50k, seed, clips_per_utterance)
    return write_store(Path(out).expanduser(), plan, write_chunks, workers)


def prepare_fedwham(wham: str | Path, out: str | Path, seed: int = 0, workers: int = 1) -> dict[str, Any]:
    """Write FedWHAM into the folder `out`, from WHAM's `wav16k/max`; see `write_store` about resuming."""
    return write_store(Path(out).expanduser(), plan_fedwham(wham, seed), copy_pair, workers)


def plan_librifsd50k(
    librispeech: str | Path, fsd50k: str | Path, seed: int = 0, clips_per_utterance: int | None = None
) -> Plan:
    """Pair utterances with clips.

    Train speakers come from train-clean-100 and -360, validation from dev-clean, test from test-clean. FSD50K's dev
    clips that have none of `SPEECH_LABELS` are shuffled by the seed and cut 90/10 for train and validation; its eval
    clips are for test. Utterances of a split, speaker by speaker, take a clip each until either is used up; with
    `clips_per_utterance` each takes as many, and the clips of its split go round. None is ever in two splits.

    Any part of the corpora will do. Where a split has no speakers of its own, a tenth of the train speakers (at least
    two), drawn by the seed, is held out for it; where FSD50K has its dev or its eval clips only, these are cut
    80/10/10. The notes of the plan say so.

    Raises:
        CorpusError: not these corpora, too little for three splits, or fewer clips in one than an utterance takes.
    """
    _check_seed(seed)
    if clips_per_utterance is not None and clips_per_utterance < 1:
        raise CorpusError(f"clips_per_utterance: {clips_per_utterance} should be a whole number from 1 on")
    speech_root, noise_root = Path(librispeech).expanduser(), Path(fsd50k).expanduser()
    notes: list[str] = []
    subsets = [subset for of_split in SPEECH_SUBSETS.values() for subset in of_split]
    passed_over: dict[str, str] = {}
    utterances = _plan_speech(read_librispeech(speech_root, subsets, passed_over), seed, notes)
    dev, eval_, left_out = read_noise_clips(noise_root)
    for file, reason in passed_over.items():
        left_out.setdefault(reason, []).append(file)
    clips = _plan_noise(noise_root, dev, eval_, seed, notes)

    pairs: list[Pair] = []
    numbers: Counter[tuple[str, str]] = Counter()
    for split in FOLDERS:
        if clips_per_utterance and clips_per_utterance > len(clips[split]):
            most = f"{len(clips[split])}, the noise clips of {split}"
            raise CorpusError(f"clips_per_utterance: {clips_per_utterance} should be at most {most}")
        spoken = [utterance for utterance in utterances[split] for _ in range(clips_per_utterance or 1)]
        heard = cycle(clips[split]) if clips_per_utterance else clips[split]
        paired = list(zip(spoken, heard, strict=False))
        for utterance, clip in paired:
            key = (split, utterance.speaker)
            pairs.append(Pair(split, utterance.speaker, numbers[key], utterance.file, clip.file, clip.labels[-1]))
            numbers[key] += 1
        left_out[f"no noise clip is left for it in {split}"] = [u.file for u in spoken[len(paired) :]]
        left_out[f"no utterance is left for it in {split}"] = [clip.file for clip in clips[split][len(paired) :]]
    return Plan("librifsd50k", speech_root, noise_root, tuple(pairs), left_out, notes)


def plan_fedwham(wham: str | Path, seed: int = 0) -> Plan:
    """Pair the first speaker's signal of each mixture (s1) with its noise; a speaker is the first three characters.

    Splits are WHAM's tr, cv and tt, of which train and validation share speakers. For cv or tt that are not there, a
    tenth of the train speakers is held out each, as in `plan_librifsd50k`.

    Raises:
        CorpusError: no such folder, or one without pairs in tr/s1 and tr/noise.
    """
    _check_seed(seed)
    root = Path(wham).expanduser()
    notes: list[str] = []
    left_out: dict[str, list[str]] = {"has no noise of its name": [], "has no speech of its name": []}
    found: dict[str, list[_Spoken]] = {}
    for split, folder in WHAM_FOLDERS.items():
        s1, noises = (_wav_files(root, f"{folder}/{part}", left_out) for part in ("s1", "noise"))
        found[split] = [_Spoken(Path(file).name[:3], file, noises[name]) for name, file in s1.items() if name in noises]
        left_out["has no noise of its name"] += [file for name, file in s1.items() if name not in noises]
        left_out["has no speech of its name"] += [file for name, file in noises.items() if name not in s1]
    if not found["train"]:
        raise CorpusError(f"{wham} is no folder of WHAM: it should have tr/s1 and tr/noise, as WHAM's wav16k/max does")
    _hold_out(found, seed, notes)

    left_out["says what another split says too"] = _drop_said_twice(found)
    pairs: list[Pair] = []
    for split, spoken in found.items():
        numbers: Counter[str] = Counter()
        for speaker, speech, noise in spoken:
            pairs.append(Pair(split, speaker, numbers[speaker], speech, noise))
            numbers[speaker] += 1
    return Plan("fedwham", root, root, tuple(pairs), left_out, notes)


def read_noise_clips(fsd50k: str | Path) -> tuple[list[Clip], list[Clip], dict[str, list[str]]]:
    """Return FSD50K's dev and eval clips that are there and have no speech-like label, and the others by reason.

    Needs less than a whole FSD50K: the table and the audio of one of the two sets.
    """
    root = Path(fsd50k).expanduser()
    if not root.is_dir():
        raise CorpusError(f"there is no FSD50K folder {root}")
    clips: dict[Part, list[Clip]] = {DEVELOPMENT: [], EVALUATION: []}
    left_out: dict[str, list[str]] = {"has a speech-like label": [], "is in the ground truth, but not there": []}
    for part, noise in clips.items():
        there = files_by_clip(root, part)
        for clip, labels in _read_labels(root / part.table) if there else ():
            file = there.get(name_key(clip), f"{part.audio}/{clip}.wav")
            if name_key(clip) not in there:
                left_out["is in the ground truth, but not there"].append(file)
            elif SPEECH_LABELS.intersection(labels):
                left_out["has a speech-like label"].append(file)
            else:
                noise.append(Clip(file, labels))
    dev, eval_ = clips.values()
    if twice := {name_key(Path(clip.file).name) for clip in dev} & {name_key(Path(clip.file).name) for clip in eval_}:
        raise CorpusError(f"{root}: {min(twice)} is in dev and in eval, and a clip of FSD50K is in one of them only")
    if not (dev or eval_):
        raise CorpusError(
            f"{root} is not an FSD50K folder with sounds other than speech: it should have {DEVELOPMENT.audio} with "
            f"{DEVELOPMENT.table}, {EVALUATION.audio} with {EVALUATION.table}, or both"
        )
    return dev, eval_, left_out


def write_chunks(plan: Plan, pair: Pair, out: Path) -> Written:
    """Cut a pair into chunks of 4 s at 16 kHz and write them as WAV of 16 bits.

    There are as many chunks as the shorter of the two has whole ones, and at least one: what is shorter than 4 s ends
    in zeros, as in the published recipe. A recording whose peak is above full scale, as resampling may make it, is
    scaled down as a whole. A chunk in which either is digital silence is left out.
    """
    written = Written()
    waveforms = {}
    for which, root, file in (("speech", plan.speech_root, pair.speech), ("noise", plan.noise_root, pair.noise)):
        try:
            waveform = read_waveform(root / file, SAMPLE_RATE, name=file)
        except AudioError as error:
            written.left_out[str(error).removeprefix(f"{file}: ")] = [file]
            other = pair.noise if which == "speech" else pair.speech
            written.left_out.setdefault("is paired with a file that cannot be used", []).append(other)
            return written
        waveforms[which], scaled = to_int16(waveform)
        if scaled:
            written.scaled_down.append(which)
        if len(waveform) < CHUNK_SAMPLES:
            written.padded.append(which)

    shorter = min(len(waveform) for waveform in waveforms.values())
    for number in range(max(1, shorter // CHUNK_SAMPLES)):
        chunks = {which: _chunk(waveform, number) for which, waveform in waveforms.items()}
        if silent := [which for which, samples in chunks.items() if not samples.any()]:
            file = pair.speech if silent[0] == "speech" else pair.noise
            written.left_out.setdefault("has a chunk of digital silence", []).append(f"{file} (chunk {number})")
            continue
        label = f"{pair.label}_" if pair.label else ""
        files = (
            f"{pair.folder}/speech/{pair.number}_{number}_id_{Path(pair.speech).stem}.wav",
            f"{pair.folder}/noise/{pair.number}_{number}_{label}id_{Path(pair.noise).stem}.wav",
        )
        for file, samples in zip(files, chunks.values(), strict=True):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            with replacing(out / file, durable=False) as path:
                soundfile.write(path, samples, SAMPLE_RATE, format="WAV")
        written.files.append(files)
    return written


def copy_pair(plan: Plan, pair: Pair, out: Path) -> Written:
    """Copy a pair as it is: WHAM is prepared already, and a shard takes 4 s out of each file."""
    written = Written()
    sources = (plan.speech_root / pair.speech, plan.noise_root / pair.noise)
    for source, file in zip(sources, (pair.speech, pair.noise), strict=True):
        try:
            rate = decode(source, file).sample_rate
            problem = None if rate == SAMPLE_RATE else f"is at {rate:,} Hz, and WHAM's wav16k is at 16,000 Hz"
        except AudioError as error:
            problem = str(error).removeprefix(f"{file}: ")
        if problem is not None:
            written.left_out.setdefault(problem, []).append(file)
    if written.left_out:
        return written
    files = (
        f"{pair.folder}/speech/{pair.number}_id_{pair.speaker}.wav",
        f"{pair.folder}/noise/{pair.number}.wav",
    )
    for source, file in zip(sources, files, strict=True):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out / file, durable=False) as path:
            shutil.copyfile(source, path)
    written.files.append(files)
    return written


def to_int16(waveform: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return samples of 16 bits, exact where the recording had 16 bits, and whether they had to be scaled down.

    Args:
        waveform: float32, shape (samples,), nominally in [-1, 1].
    """
    peak = float(np.abs(waveform).max())
    samples = np.round(waveform * (32_768 / max(peak, 1.0)))
    return np.clip(samples, -32_768, 32_767).astype(np.int16), peak > 1


def _chunk(samples: np.ndarray, number: int) -> np.ndarray:
    chunk = samples[number * CHUNK_SAMPLES : (number + 1) * CHUNK_SAMPLES]
    return np.pad(chunk, (0, CHUNK_SAMPLES - len(chunk)))


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise CorpusError(f"seed: {seed} should be a whole number from 0 on")


def _plan_speech(found: dict[str, tuple[Utterance, ...]], seed: int, notes: list[str]) -> dict[str, list[Utterance]]:
    """Return the utterances of each split."""
    utterances: dict[str, list[Utterance]] = {}
    for split, subsets in SPEECH_SUBSETS.items():
        utterances[split] = [utterance for subset in subsets for utterance in found.get(subset, ())]
        for subset in subsets:
            number = len(found.get(subset, ()))
            if number != SUBSETS[subset]:
                notes.append(f"LibriSpeech {subset}: {number:,} utterances of the published {SUBSETS[subset]:,}")
    if not utterances["train"]:
        most = max(utterances, key=lambda split: len(utterances[split]))
        utterances["train"], utterances[most] = utterances[most], []
        notes.append(f"train: made from {' and '.join(SPEECH_SUBSETS[most])}, as no train subset is there")
    _hold_out(utterances, seed, notes)
    return utterances


def _hold_out(of_split: dict[str, list[_T]], seed: int, notes: list[str]) -> None:
    """Give each split that is empty whole speakers of the train split."""
    for salt, split in enumerate(of_split):
        if of_split[split]:
            continue
        speakers = sorted({item.speaker for item in of_split["train"]})
        number = max(MIN_PAIRS, round(HELD_OUT_SHARE * len(speakers)))
        if number >= len(speakers):
            raise CorpusError(
                f"{split}: {number} speakers cannot be held out for it, as train has {len(speakers)} only"
            )
        held_out = {speakers[i] for i in np.random.default_rng((seed, salt)).permutation(len(speakers))[:number]}
        of_split[split] = [item for item in of_split["train"] if item.speaker in held_out]
        of_split["train"] = [item for item in of_split["train"] if item.speaker not in held_out]
        notes.append(f"{split}: {number} of {len(speakers)} train speakers are held out for it: {_names(held_out)}")


def _drop_said_twice(found: dict[str, list[_Spoken]]) -> list[str]:
    """Take those pairs out of train, and then of validation, whose utterance a later split has too.

    WHAM's files are called <utterance of s1>_<gain>_<utterance of s2>_<gain>.wav, and an utterance is in many of them.
    """
    dropped: list[str] = []
    heard: set[str] = set()
    for split in reversed(found):
        kept = [spoken for spoken in found[split] if _said(spoken) not in heard]
        dropped += [spoken.speech for spoken in found[split] if _said(spoken) in heard]
        heard.update(map(_said, kept))
        found[split] = kept
    return dropped


def _said(spoken: _Spoken) -> str:
    return Path(spoken.speech).name.split("_")[0]


def _plan_noise(
    root: Path, dev: Sequence[Clip], eval_: Sequence[Clip], seed: int, notes: list[str]
) -> dict[str, list[Clip]]:
    """Return the clips of each split."""
    shuffled = _shuffle(dev or eval_, seed)
    if dev and eval_:
        cut = int(len(shuffled) * (1 - VALIDATION_NOISE_SHARE))
        clips = {"train": shuffled[:cut], "validation": shuffled[cut:], "test": _shuffle(eval_, seed)}
    else:
        there, absent = ("dev", "eval") if dev else ("eval", "dev")
        first, second = (int(len(shuffled) * (1 - share * HELD_OUT_SHARE)) for share in (2, 1))
        clips = {"train": shuffled[:first], "validation": shuffled[first:second], "test": shuffled[second:]}
        notes.append(f"noise: cut 80/10/10 out of FSD50K's {there} clips, as there are no {absent} clips")
    if few := [split for split in clips if len(clips[split]) < MIN_PAIRS]:
        raise CorpusError(
            f"{root} has {len(dev)} dev and {len(eval_)} eval clips without speech, too few: {few[0]} would have "
            f"{len(clips[few[0]])} of them, and {MIN_PAIRS} are needed"
        )
    return clips


def _shuffle(clips: Sequence[Clip], seed: int) -> list[Clip]:
    ordered = sorted(clips)  # so that the outcome does not depend on the order in a list
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def _read_labels(table: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and labels of each clip."""
    if not table.exists():
        raise CorpusError(f"{table} is not there; FSD50K.ground_truth.zip has it")
    for _, row in read_columns(table, ("fname", "labels")):
        yield row["fname"], tuple(label.strip() for label in row["labels"].split(","))


def _wav_files(root: Path, folder: str, left_out: dict[str, list[str]]) -> dict[str, str]:
    """Return files, relative to the root, by `name_key` of their names."""
    if not (root / folder).is_dir():
        return {}
    reasons: dict[str, str] = {}
    files = list_recordings(root, folder, ".wav", reasons)
    for file, reason in reasons.items():
        left_out.setdefault(reason, []).append(file)
    return {name_key(Path(file).name): file for file in files}


def _names(speakers: Iterable[str]) -> str:
    return ", ".join(sorted(speakers, key=lambda speaker: (len(speaker), speaker)))
