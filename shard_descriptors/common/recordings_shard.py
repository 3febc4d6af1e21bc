"""One node's shard of recordings of a site's own, whatever told of them: a table, or a folder."""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from openfl_audio.text import count_letters
from shard_descriptors.common.audio import duration_s, read_waveform
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.partition import parse_rank_worldsize
from shard_descriptors.common.recordings import (
    SPLITS,
    Division,
    Listing,
    Recording,
    Target,
    assign_nodes,
    cut_windows,
    describe_left_out,
    divide,
)

logger = logging.getLogger(__name__)


class RecordingsDataset(ShardDataset):
    """A split of a shard. Audio is decoded when an item is asked for; targets and groups need no audio.

    dataset[i] -> (waveform, target)
        waveform  float32, shape (samples,): mono, at `sample_rate`; of one length only where windows are cut
        target    str (a label, or a text), tuple of str (several labels), or float (a number), as `kind` says

    Labels are those of the site, as it writes them: the experiment says which classes they are.

    Attributes:
        kind: "label", "labels", "number" or "text".
        targets: of each item.
        groups: the speaker, patient or device of each item; "" where it is unknown.
        files: of each item.
        sample_rate: in Hz.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        kind: str,
        sample_rate: int,
        num_samples: int | None,
        channel: int | None = None,
    ) -> None:
        self.kind = kind
        self.sample_rate = sample_rate
        self.targets: list[Target] = [recording.target for recording in recordings]
        self.groups = [recording.group for recording in recordings]
        self.files = [recording.name for recording in recordings]
        self._recordings = recordings
        self._num_samples = num_samples
        self._channel = channel

    @cached_property
    def num_samples(self) -> np.ndarray:
        """Return the length of each item in samples, int64 (items,), as the headers of the files tell it."""
        if self._num_samples is not None:
            return np.full(len(self), self._num_samples, dtype=np.int64)
        seconds = [
            (duration_s(each.source) if each.end_s is None else each.end_s) - each.start_s for each in self._recordings
        ]
        return np.array([round(each * self.sample_rate) for each in seconds], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Target]:
        recording = self._recordings[index]
        waveform = read_waveform(
            recording.source, self.sample_rate, recording.name, recording.start_s, recording.end_s, self._channel
        )
        if self._num_samples is not None:
            waveform = waveform[: self._num_samples]
            waveform = np.pad(waveform, (0, self._num_samples - len(waveform)))
        return waveform, recording.target


class RecordingsShardDescriptor(ShardDescriptor):
    """One node's shard of a site's own recordings: the base of those that read a table or a folder.

    What is sent to the director is the description: counts of clips by split and class, and how many files were left
    out for which reason. Names of files and groups stay in the log of the envoy.

    Args:
        listing: the recordings that the site names.
        sample_rate: of the waveforms, in Hz; files of another rate are resampled.
        channel: "mean" of all channels, or the number of the one that is heard, from 1; recordings without it are left
            out.
        rank_worldsize: "1,3" is the first of three nodes that share these recordings, by group. The default is one
            node that has everything. The test split is whole on every node.
        validation_share, test_share: of the clips, where the site has no split of its own: see `divide`.
        seed: of splits and nodes.
        window_s, hop_s: length of the windows that recordings are cut into, and from one to the next, in seconds;
            without `hop_s` they do not overlap. Without `window_s` an item is a whole recording.

    Raises:
        CorpusError: a parameter that is wrong, or no train clip for this node.
    """

    # By this name an experiment asks for envoys.
    corpus = "recordings"

    def __init__(
        self,
        listing: Listing,
        sample_rate: int = 16_000,
        rank_worldsize: str = "1,1",
        validation_share: float = 0.15,
        test_share: float = 0.15,
        seed: int = 0,
        window_s: float | None = None,
        hop_s: float | None = None,
        channel: int | str = "mean",
    ) -> None:
        self.channel = _read_channel(channel)
        _check_parameters(sample_rate, validation_share, test_share, seed, window_s, hop_s)
        self.rank, self.world_size = parse_rank_worldsize(rank_worldsize)
        self.listing = listing
        self.sample_rate = sample_rate
        self._num_samples = None if window_s is None else round(window_s * sample_rate)
        self.division: Division = divide(listing, validation_share, test_share, seed, self.channel)
        self.splits: dict[str, Sequence[Recording]] = {}
        for split, recordings in self.division.splits.items():
            nodes = [self.rank - 1] * len(recordings)
            if split != "test" and self.world_size > 1:
                nodes = assign_nodes(recordings, self.world_size, seed)
            mine = [each for each, node in zip(recordings, nodes, strict=True) if node == self.rank - 1]
            self.splits[split] = mine if window_s is None else cut_windows(mine, window_s, hop_s or window_s)
        self._warn()
        if not self.splits["train"]:
            raise CorpusError(
                f"{listing.name} has no train clip for shard {self.rank} of {self.world_size}{self._left_out()}"
            )

    def get_dataset(self, dataset_type: str) -> RecordingsDataset:
        """Return the items of "train", "validation" or "test"."""
        if dataset_type not in SPLITS:
            raise CorpusError(f"there is no split {dataset_type!r}; the splits are {', '.join(SPLITS)}")
        recordings = self.splits[dataset_type]
        return RecordingsDataset(recordings, self.listing.kind, self.sample_rate, self._num_samples, self.channel)

    @property
    def sample_shape(self) -> list[str]:
        """Shape of a waveform, -1 where each has its own length; strings, as OpenFL's message wants them."""
        return ["-1" if self._num_samples is None else str(self._num_samples)]

    @property
    def target_shape(self) -> list[str]:
        return ["-1" if self.listing.kind in ("labels", "text") else "1"]

    @property
    def dataset_description(self) -> str:
        """YAML for the director's shard registry: the corpus, `summary`, and the clips of each class, or `letters`."""
        description: dict[str, Any] = {
            "corpus": self.corpus,
            "summary": self.summary,
            "kind": self.listing.kind,
            "sample_rate": self.sample_rate,
        }
        for split, recordings in self.splits.items():
            description[split] = count_classes(recordings) or {"clips": len(recordings)}
        if self.listing.kind == "text":
            description["letters"] = self.letters
        return yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=1_000)

    @property
    def letters(self) -> dict[str, int]:
        """Return in how many texts that train or validate each letter is; none where targets are no texts."""
        if self.listing.kind != "text":
            return {}
        return count_letters(str(each.target) for split in ("train", "validation") for each in self.splits[split])

    @property
    def summary(self) -> str:
        """One line: what this shard holds and what it had to leave out, without names."""
        held = ", ".join(f"{len(recordings):,} {split}" for split, recordings in self.splits.items())
        groups = {each.group for recordings in self.splits.values() for each in recordings} - {""}
        of_groups = f" of {len(groups):,} groups" if groups else ""
        return f"shard {self.rank} of {self.world_size}: {held} clips{of_groups}{self._left_out()}"

    def _left_out(self) -> str:
        count = len(self.division.left_out)
        return f"; {count:,} recordings left out, named in the envoy's log" if count else ""

    def _warn(self) -> None:
        for line in describe_left_out(self.division.left_out):
            logger.warning("%s: %s", self.listing.name, line)
        if shared := self.division.shared_groups:
            logger.warning("%s: %d groups are in several splits", self.listing.name, len(shared))


def count_classes(recordings: Sequence[Recording]) -> dict[str, int]:
    """Return the number of recordings of each label, sorted; none where the targets are numbers or texts."""
    counts = Counter(name for recording in recordings for name in recording.classes)
    return {name: counts[name] for name in sorted(counts)}


def _read_channel(channel: int | str) -> int | None:
    """Return the number of a channel, None for the mean of all."""
    if channel == "mean":
        return None
    if not isinstance(channel, int) or isinstance(channel, bool) or channel < 1:
        raise CorpusError(f"channel: {channel!r} should be mean, or the number of a channel from 1 on")
    return channel


def _check_parameters(
    sample_rate: int,
    validation_share: float,
    test_share: float,
    seed: int,
    window_s: float | None,
    hop_s: float | None,
) -> None:
    if not isinstance(sample_rate, int) or not 1_000 <= sample_rate <= 768_000:
        raise CorpusError(f"sample_rate: {sample_rate!r} should be a whole number of Hz, such as 16000")
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise CorpusError(f"{name}: {share!r} should be a number from 0 on, and below 1")
    if validation_share + test_share >= 1:
        raise CorpusError(f"validation_share and test_share are {validation_share + test_share:g} together: no train")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise CorpusError(f"seed: {seed!r} should be a whole number from 0 on")
    for name, seconds in (("window_s", window_s), ("hop_s", hop_s)):
        if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < float("inf")):
            raise CorpusError(f"{name}: {seconds!r} should be a number of seconds above 0")
    if hop_s is not None and window_s is None:
        raise CorpusError(f"hop_s: {hop_s!r} has no effect without window_s")


def places_of(listing: Listing, *places: Path) -> list[Path]:
    """Return `places`, and the folders of recordings that lie in none of them: what a worker must see."""
    files = [each.file for each in listing.recordings if isinstance(each.file, Path)]
    outside = {file.parent for file in files if not any(file.is_relative_to(place) for place in places)}
    return [*places, *sorted(outside)]
