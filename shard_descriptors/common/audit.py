"""Audit of a site's own recordings and of their faults: each is decoded once, and nothing is changed."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shard_descriptors.common.audio import decode
from shard_descriptors.common.errors import AudioError, first_names
from shard_descriptors.common.recordings import Recording, describe_left_out
from shard_descriptors.common.recordings_shard import RecordingsShardDescriptor, count_classes

SILENT_PEAK = 1e-3  # -60 dB of full scale
# A wave that was cut off stays at one value near full scale for a while.
CLIPPED_PEAK, CLIPPED_SAMPLES = 0.98, 4
# Parts of a column's header that tell of a person, and how a full name and a mail address look.
PERSONAL = {"name", "names", "surname", "firstname", "lastname", "fullname", "vorname", "nachname", "nom", "prenom"}
PERSONAL |= {"email", "mail", "birth", "birthday", "birthdate", "dob", "address", "phone", "telephone", "ssn", "mrn"}
NOT_PERSONAL = {"file", "filename", "path", "class", "label"}
FULL_NAME = re.compile(r"[^\W\d_a-z][\w'’.-]*,? [^\W\d_a-z][\w'’.-]*( [^\W\d_a-z][\w'’.-]*)?|[^@\s]+@[^@\s]+\.\w+")


@dataclass
class Audit:
    """The findings about the recordings of a shard.

    Attributes:
        lines: what there is.
        notes: what should be looked at, and is used as it is.
        faults: what is not used, or tells a score that is too good.
    """

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def audit(shard: RecordingsShardDescriptor) -> Audit:
    """Read all recordings of a shard, and tell what is in them and what is wrong with them."""
    found = Audit([shard.summary, *describe_splits(shard.splits)])
    durations: list[float] = []
    silent, clipped = [], []
    left_out = dict(shard.division.left_out)
    for recording in (each for of_split in shard.splits.values() for each in of_split):
        try:
            waveform, rate, _ = decode(
                recording.source, recording.name, recording.start_s, recording.end_s, shard.channel
            )
        except AudioError as error:
            left_out[recording.name] = str(error).removeprefix(f"{recording.name}: ")
            continue
        durations.append(len(waveform) / rate)
        if np.abs(waveform).max() < SILENT_PEAK:
            silent.append(recording.name)
        elif is_clipped(waveform):
            clipped.append(recording.name)
    if durations:
        found.lines.append(
            f"durations: {min(durations):.2f} to {max(durations):.2f} s, median {np.median(durations):.2f} s, "
            f"{sum(durations) / 3600:.2f} h in all"
        )
    if silent:
        found.notes.append(f"{len(silent):,} are silent (peak below -60 dB of full scale): {first_names(silent)}")
    if clipped:
        found.notes.append(f"{len(clipped):,} are clipped: {first_names(clipped)}")
    if twice := shard.division.duplicates:
        pairs = [f"{name} is {first}" for name, first in twice.items()]
        found.notes.append(f"{len(twice):,} have the content of another: {first_names(pairs)}")
    for column, reason in personal_columns(shard.listing.columns).items():
        found.notes.append(f"the column '{column}' {reason}: it stays here, and is better not in the table")
    found.faults += describe_left_out(left_out)
    if shared := shard.division.shared_groups:
        found.faults.append(f"{len(shared):,} groups are in several splits: {first_names(shared)}")
    return found


def describe_splits(splits: Mapping[str, Sequence[Recording]]) -> Iterator[str]:
    """Yield a line for each split, with its clips, groups and classes, and one for the largest groups."""
    groups: Counter[str] = Counter()
    for split, recordings in splits.items():
        of_split = {each.group for each in recordings} - {""}
        groups.update(each.group for each in recordings if each.group)
        classes = ", ".join(f"{name} ({count:,})" for name, count in count_classes(recordings).items())
        of_groups = f" of {len(of_split):,} groups" if of_split else ""
        yield f"{split}: {len(recordings):,} clips{of_groups}" + (f": {classes}" if classes else "")
    if groups:
        counts = sorted(groups.values())
        largest = ", ".join(f"{name} ({count:,})" for name, count in groups.most_common(3))
        yield f"groups: {counts[0]:,} to {counts[-1]:,} clips each; the largest are {largest}"


def is_clipped(waveform: np.ndarray) -> bool:
    """Tell whether a waveform, (samples,), stays at its largest absolute value for CLIPPED_SAMPLES or more."""
    level = np.abs(waveform)
    peak = level.max()
    if peak < CLIPPED_PEAK:
        return False
    at_peak = np.concatenate([[False], level >= peak - 1e-4, [False]])
    edges = np.flatnonzero(at_peak[1:] != at_peak[:-1])
    return bool((edges[1::2] - edges[::2]).max() >= CLIPPED_SAMPLES)


def personal_columns(columns: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return columns that look as if they told who somebody is, with the reason.

    >>> personal_columns({"patient name": ["p1"], "who": ["Ann Lee", "Bo Li"], "word": ["yes"], "file name": ["a.wav"]})
    {'patient name': 'is called so', 'who': 'has what look like names of people'}
    """
    found = {}
    for column, cells in columns.items():
        words = set(re.split(r"[\W_]+", column.casefold()))
        distinct = {cell for cell in cells if cell}
        if words & PERSONAL and not words & NOT_PERSONAL:
            found[column] = "is called so"
        elif distinct and 2 * sum(FULL_NAME.fullmatch(cell) is not None for cell in distinct) > len(distinct):
            found[column] = "has what look like names of people"
    return found
