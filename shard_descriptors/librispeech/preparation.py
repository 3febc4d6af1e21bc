"""LibriSpeech divided among clients: every utterance is decoded once, then listed with its client and split.

The audio stays where it is. Who gets what is a function of the usable utterances, the number of clients and the seed.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openfl_audio.files import replacing
from shard_descriptors.common.audio import decode, resample
from shard_descriptors.common.errors import AudioError, CorpusError, first_names
from shard_descriptors.common.files import name_key, write_json
from shard_descriptors.common.partition import by_clip, by_speaker
from shard_descriptors.common.preparing import JOURNAL, do_the_rest, open_journal
from shard_descriptors.common.text import read_json, read_lines
from shard_descriptors.librispeech.layout import SUBSETS, Utterance, read_librispeech
from shard_descriptors.librispeech.store import (
    COLUMNS,
    FRAME_SAMPLES,
    GLOBAL_SPLITS,
    REPORT,
    SAMPLE_RATE,
    SPLITS,
    TABLE,
    Clip,
)

PARTITIONS = ("speaker", "iid")
TRAIN_SUBSETS = tuple(subset for subset in SUBSETS if subset.startswith("train-"))
VALIDATION_SHARE = 0.1  # of each client's clips


@dataclass(frozen=True)
class PreparationSettings:
    """Settings of a prepared folder; the same settings and files give the same folder."""

    audio: str
    clients: int
    partition: str
    seed: int
    subsets: list[str] | None = None


def prepare_librispeech(
    data: str | Path,
    out: str | Path,
    clients: int,
    partition: str = "speaker",
    seed: int = 0,
    workers: int = 1,
    subsets: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the table and the report of a prepared folder, see `store.py`.

    The train subsets that are there are one pool; where there is none, the largest of the others is. The pool is
    divided by speaker, with about the same number of hours on each client (in an order drawn by the seed, each speaker
    goes to the client with the least so far), or `iid`: utterances are dealt out regardless of the speaker. Of its
    clips a client holds out a tenth for validation, drawn by the seed.

    Every file is decoded, which finds files that were cut short; FLAC has a checksum in each frame. Lengths are those
    at 16 kHz, to which shards resample what has another rate; the report names such files. A run that was stopped
    resumes where it was; a folder that is complete is left as it is.

    Args:
        data: a LibriSpeech folder; see `layout.py`.
        out: the prepared folder.
        clients: number of clients.
        partition: "speaker" or "iid".
        seed: of the division and of the validation clips.
        workers: number of processes that decode.
        subsets: those that are one pool, in place of the train subsets.

    Returns:
        The report, as in librispeech.json.

    Raises:
        CorpusError: no LibriSpeech, a transcript in no encoding that can be told, more clients than speakers (or than
            utterances, with iid), or a folder that was begun with other settings.
    """
    audio, out = Path(data).expanduser().resolve(), Path(out).expanduser()
    settings = PreparationSettings(str(audio), clients, partition, seed, sorted(set(subsets)) or None)
    _check_settings(settings, workers)
    if (out / REPORT).is_file():
        report = read_json(out / REPORT)
        _check_same(out, report, settings)
        return report
    left_out: dict[str, str] = {}
    found = read_librispeech(audio, left_out=left_out)
    pooled = _pooled(found) if settings.subsets is None else settings.subsets
    if lacks := [subset for subset in pooled if subset not in found]:
        raise CorpusError(f"subsets: {lacks[0]!r} is not in {data}; there are {', '.join(found)}")
    splits = {split: subset for split, subset in GLOBAL_SPLITS.items() if subset in found and subset not in pooled}
    used = [*pooled, *splits.values()]
    # Before hours of decoding, as a transcript that cannot be read ends the run.
    transcripts = _read_transcripts(audio, [utterance for subset in used for utterance in found[subset]])
    scanned = _scan(out, audio, [utterance.file for subset in used for utterance in found[subset]], workers)

    usable = {subset: [u for u in found[subset] if "problem" not in scanned[u.file]] for subset in used}
    samples = {file: result["num_samples"] for file, result in scanned.items() if "problem" not in result}

    def to_clip(utterance: Utterance, split: str, client: int = 0) -> Clip:
        file = utterance.file
        return Clip(
            split, client, utterance.speaker, file, samples[file], transcripts.get(name_key(utterance.name), "")
        )

    pool = [to_clip(utterance, "train") for subset in pooled for utterance in usable[subset]]
    clips = divide(pool, clients, partition, seed)
    clips += [to_clip(u, split) for split, subset in splits.items() for u in usable[subset]]
    notes = _notes(found, pooled, splits, transcripts, scanned)
    report = _report(settings, notes, left_out, scanned, clips)
    _write_table(out, clips)
    write_json(out / REPORT, report)
    (out / JOURNAL).unlink()
    return report


def divide(pool: Sequence[Clip], clients: int, partition: str, seed: int) -> list[Clip]:
    """Return the clips of the pool with their clients, from 1, each one's train clips before its validation clips.

    A client holds out a tenth of its clips, rounded, and at least one; a client with one clip trains on it.
    """
    if len(pool) < clients:
        raise CorpusError(f"{clients} clients cannot share {len(pool)} utterances: there can be {len(pool)} at most")
    if partition == "speaker":
        seconds: Counter[str] = Counter()
        for clip in pool:
            seconds[clip.speaker] += -(-clip.num_samples // SAMPLE_RATE)
        # A name comes once per second of speech, so that hours are what is balanced.
        node_of = by_speaker(seconds.elements(), clients, seed)
        nodes = np.array([node_of[clip.speaker] for clip in pool])
    else:
        nodes = by_clip(len(pool), clients, seed)
    divided = []
    for node in range(clients):
        own = [clip._replace(client=node + 1) for clip, of_clip in zip(pool, nodes, strict=True) if of_clip == node]
        n_validation = min(max(round(VALIDATION_SHARE * len(own)), 1), len(own) - 1)
        held_out = set(np.random.default_rng((seed, node)).permutation(len(own))[:n_validation].tolist())
        divided += [clip for i, clip in enumerate(own) if i not in held_out]
        divided += [clip._replace(split="validation") for i, clip in enumerate(own) if i in held_out]
    return divided


def summarize(report: Mapping[str, Any]) -> list[str]:
    """Return what a report says, in lines for a terminal."""
    lines = list(report["notes"])
    for split, counts in report["splits"].items():
        lines.append(
            f"{split}: {counts['clips']:,} clips of {counts['speakers']:,} speakers, {counts['hours']:.2f} h, "
            f"{counts['with_transcript']:,} with a transcript"
        )
    hours = report["hours_per_client"]
    lines.append(
        f"{report['clients']} clients by {report['partition']}, seed {report['seed']}: {min(hours):.2f} to "
        f"{max(hours):.2f} h of train and validation clips on each"
    )
    return lines + [f"left out: {file} {problem}" for file, problem in report["left_out"].items()]


def _check_settings(settings: PreparationSettings, workers: int) -> None:
    for key, value, smallest in (
        ("clients", settings.clients, 1),
        ("seed", settings.seed, 0),
        ("workers", workers, 1),
    ):
        if not isinstance(value, int) or value < smallest:
            raise CorpusError(f"{key}: {value!r} should be a whole number from {smallest} on")
    if settings.partition not in PARTITIONS:
        raise CorpusError(f"partition: {settings.partition!r} should be one of {', '.join(PARTITIONS)}")


def _check_same(out: Path, before: Mapping[str, Any], settings: PreparationSettings) -> None:
    for key, value in vars(settings).items():
        if before.get(key) != value:
            raise CorpusError(
                f"{out} was prepared with {key} {before.get(key)!r}, now it is {value!r}: choose another folder"
            )


def _scan(out: Path, audio: Path, files: Sequence[str], workers: int) -> dict[str, dict[str, Any]]:
    """Decode each file: {"num_samples": ...} or {"problem": ...}, in the order of `files`."""
    journal = open_journal(out, {"audio": str(audio)})
    if journal[0]["audio"] != str(audio):
        begun = journal[0]["audio"]
        raise CorpusError(f"{out} was begun with the audio in {begun}, not {audio}: choose another folder")
    return do_the_rest(
        journal,
        "file",
        files,
        lambda file: _scan_file(audio / file, file),
        fault="problem",
        workers=workers,
        description="Decoding LibriSpeech",
    )


def _scan_file(path: Path, name: str) -> dict[str, Any]:
    try:
        decoded = decode(path, name)
    except AudioError as error:
        return {"problem": str(error).removeprefix(f"{name}: ")}
    num_samples = len(resample(decoded.waveform, decoded.sample_rate, SAMPLE_RATE))
    if num_samples < FRAME_SAMPLES:
        return {"problem": f"has {num_samples} samples, and one frame needs {FRAME_SAMPLES}"}
    return {"num_samples": num_samples} | (
        {"sample_rate": decoded.sample_rate} if decoded.sample_rate != SAMPLE_RATE else {}
    )


def _pooled(found: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """Return the subsets that clients train on: those for training or, without any, the largest."""
    train = [subset for subset in TRAIN_SUBSETS if subset in found]
    return train or [max(found, key=lambda subset: len(found[subset]))]


def _read_transcripts(audio: Path, utterances: Sequence[Utterance]) -> dict[str, str]:
    """Read what is said by `name_key` of an utterance, from <speaker>-<chapter>.trans.txt: a line is name and text.

    White space of any kind is between name and text, and one space between words.
    """
    transcripts: dict[str, str] = {}
    for folder, speaker, chapter in sorted({(Path(u.file).parent, u.speaker, u.chapter) for u in utterances}):
        wanted = name_key(f"{speaker}-{chapter}.trans.txt")
        for path in sorted((audio / folder).iterdir()):
            if name_key(path.name) == wanted:
                for number, line in read_lines(path):
                    utterance, *words = line.split()
                    text = " ".join(words)
                    if transcripts.setdefault(name_key(utterance), text) != text:
                        raise CorpusError(f"{path}, line {number}: {utterance} has another transcript before: keep one")
    return transcripts


def _notes(
    found: Mapping[str, Sequence[Utterance]],
    pooled: Sequence[str],
    splits: Mapping[str, str],
    transcripts: Mapping[str, str],
    scanned: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Return sentences about what is there, what is not, and what is used otherwise than in the published corpus."""
    used = (*pooled, *splits.values())
    notes = [
        f"{subset}: {len(found[subset]):,} utterances"
        + (f" of the published {SUBSETS[subset]:,}" if len(found[subset]) != SUBSETS[subset] else "")
        for subset in used
    ]
    if not set(TRAIN_SUBSETS).intersection(found):
        notes.append(f"train: made from {pooled[0]}, as no train subset is there")
    notes += [f"{subset}: there, and not used" for subset in found if subset not in used]
    notes += [
        f"{subset}: {'used for train' if subset in pooled else 'not there'}, so the split {split} is empty"
        for split, subset in GLOBAL_SPLITS.items()
        if split not in splits
    ]
    rates = Counter(result["sample_rate"] for result in scanned.values() if "sample_rate" in result)
    notes += [f"{count:,} files at {rate:,} Hz: resampled to {SAMPLE_RATE:,} Hz" for rate, count in rates.items()]
    said = set(transcripts).difference(name_key(Path(file).stem) for file in scanned)
    if said:
        notes.append(f"{len(said):,} transcripts are of no utterance that is there: {first_names(sorted(said))}")
    return notes


def _report(
    settings: PreparationSettings,
    notes: Sequence[str],
    left_out: Mapping[str, str],
    scanned: Mapping[str, Mapping[str, Any]],
    clips: Sequence[Clip],
) -> dict[str, Any]:
    samples = np.bincount([clip.client for clip in clips], [clip.num_samples for clip in clips])
    problems = {file: result["problem"] for file, result in scanned.items() if "problem" in result}
    return {
        **vars(settings),
        "notes": notes,
        "splits": {split: _counts([clip for clip in clips if clip.split == split]) for split in SPLITS},
        "hours_per_client": [round(float(hours), 4) for hours in samples[1:] / (3600 * SAMPLE_RATE)],
        "resampled": {file: result["sample_rate"] for file, result in scanned.items() if "sample_rate" in result},
        "left_out": {**left_out, **problems},
    }


def _counts(clips: Sequence[Clip]) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips}),
        "hours": round(sum(clip.num_samples for clip in clips) / (3600 * SAMPLE_RATE), 4),
        "with_transcript": sum(bool(clip.transcript) for clip in clips),
    }


def _write_table(out: Path, clips: Sequence[Clip]) -> None:
    with replacing(out / TABLE, durable=True) as path, path.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(COLUMNS)
        for clip in clips:
            duration_s = f"{clip.num_samples / SAMPLE_RATE:.4f}"
            table.writerow([*clip[:5], duration_s, clip.transcript])
