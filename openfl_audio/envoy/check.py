"""Look at the shard of an envoy's settings as a director and tasks would, and say what is wrong with it."""

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from openfl_audio.config import load_settings
from openfl_audio.envoy.envoy import corpus_of, shape_of
from openfl_audio.envoy.settings import EnvoyFile, build_shard_descriptor
from openfl_audio.errors import OpenFLAudioError, SettingsError
from openfl_audio.protocol.shard_sizes import SPLITS

ITEMS = 10  # of each split, spread over the whole of it
# Parts of an item by name: those of a mapping by their keys, those of a tuple by their places.
Parts = dict[str, Any]


@dataclass
class ShardCheck:
    """The findings about a shard.

    Attributes:
        lines: what the shard serves, for a terminal.
        faults: a sentence for each thing that would keep an experiment from running on the shard.
    """

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_envoy(config: Path) -> ShardCheck:
    """Build the shard that the envoy's YAML file `config` names, without a director, and read items of it.

    Raises SettingsError if the file, or the name or the parameters of the shard descriptor in it are wrong.
    """
    config = config.resolve()
    settings = load_settings(config, EnvoyFile).shard_descriptor
    check = ShardCheck([f"shard descriptor: {settings.template}"])
    try:
        shard_descriptor = build_shard_descriptor(settings, config.parent)
    except SettingsError:
        raise
    except Exception as error:  # a site's own code may raise whatever it likes, here and below
        check.faults.append(f"the shard cannot be built: {explain(error)}")
        return check
    check_registration(shard_descriptor, check)
    for split in SPLITS.values():
        check_split(shard_descriptor, split, check)
    return check


def check_registration(shard_descriptor: ShardDescriptor, check: ShardCheck) -> None:
    """Check what the envoy tells the director about its shard."""
    corpus = corpus_of(shard_descriptor)
    if isinstance(corpus, str) and corpus.isascii() and corpus.isprintable() and corpus:
        check.lines.append(f"corpus: {corpus}")
    else:
        check.faults.append(f"corpus is {corpus!r}: it should be a name in ASCII")
    for name in ("sample_shape", "target_shape"):
        try:
            check.lines.append(f"{name}: {', '.join(shape_of(shard_descriptor, name))}")
        except SettingsError as error:
            check.faults.append(str(error))
        except Exception as error:
            check.faults.append(f"{name} cannot be read: {explain(error)}")
    try:
        description = shard_descriptor.dataset_description
    except Exception as error:
        check.faults.append(f"dataset_description cannot be read: {explain(error)}")
        return
    if isinstance(description, str):
        check.lines.extend(["description:", *(f"  {line}" for line in description.splitlines())])
    else:
        check.faults.append(f"dataset_description is a {type(description).__name__}: it should be a string")


def check_split(shard_descriptor: ShardDescriptor, split: str, check: ShardCheck) -> None:
    """Count the items of a split and read some of them."""
    try:
        dataset = shard_descriptor.get_dataset(split)
        number = len(dataset)
    except Exception as error:
        check.faults.append(f"the split '{split}' cannot be opened: {explain(error)}")
        return
    if number == 0:
        # Experiments may have another envoy that validates.
        check.lines.append(f"{split}: no items")
        if split == SPLITS["train"]:
            check.faults.append(f"the split '{split}' has no items: an envoy needs some to train")
        return
    indices = np.unique(np.linspace(0, number - 1, ITEMS).round().astype(int)).tolist()
    items = dict(read_items(dataset, split, indices, check))
    check.lines.append(f"{split}: {number:,} items; read {', '.join(map(str, indices))}:")
    if items:
        sample_rate = getattr(dataset, "sample_rate", None)
        for name in next(iter(items.values())):
            values = [parts[name] for parts in items.values()]
            check.lines.append(f"  {name}: {describe(values, sample_rate)}")


def read_items(
    dataset: ShardDataset, split: str, indices: Sequence[int], check: ShardCheck
) -> Iterator[tuple[int, Parts]]:
    """Yield items by index, save those that cannot be read or are no like of the first; values may be faulty."""
    first: tuple[int, Parts] | None = None
    for index in indices:
        item = f"{split} item {index}"
        try:
            parts = to_parts(dataset[index])
        except Exception as error:
            check.faults.append(f"{item} cannot be read: {explain(error)}")
            continue
        first = first or (index, parts)
        if layout(parts) != layout(first[1]):
            check.faults.append(
                f"{item} is ({describe_layout(parts)}), and item {first[0]} ({describe_layout(first[1])}): "
                "they should be alike, as they go into one batch"
            )
            continue
        check.faults.extend(f"{item}: {fault}" for name, value in parts.items() for fault in faults_of(name, value))
        yield index, parts


def to_parts(item: Any) -> Parts:
    """Return the parts of an item."""
    if isinstance(item, Mapping):
        parts = {str(name): value for name, value in item.items()}
    elif isinstance(item, tuple | list):
        parts = {f"[{place}]": value for place, value in enumerate(item)}
    else:
        parts = {"item": item}
    return {name: _plain(value) for name, value in parts.items()}


def _plain(value: Any) -> Any:
    """Return a tensor as an array, and what has no axes as a number."""
    if not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    return array if array.ndim else array.item()


def layout(parts: Parts) -> dict[str, tuple[str, int]]:
    """Return what has to be the same in all items of a split: type and number of axes of each part."""
    return {
        name: (str(value.dtype), value.ndim) if isinstance(value, np.ndarray) else (type(value).__name__, 0)
        for name, value in parts.items()
    }


def describe_layout(parts: Parts) -> str:
    """Describe in words what has to be the same in all items of a split."""
    return ", ".join(f"{name} {kind} with {axes} axes" for name, (kind, axes) in layout(parts).items())


def faults_of(name: str, value: Any) -> Iterator[str]:
    """Yield what makes a part unfit for training."""
    if value is None:
        yield f"{name} is None"
    elif isinstance(value, float | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind not in "fc":
            return
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            yield f"{name} has {wrong:,} of {array.size:,} values that are not finite"
        elif array.size == 0:
            yield f"{name} is empty, of shape {array.shape}"


def describe(values: Sequence[Any], sample_rate: int | None) -> str:
    """Describe one part over several items: type, shapes, durations, values or classes."""
    if isinstance(values[0], np.ndarray):
        return _describe_arrays(values, sample_rate)
    if isinstance(values[0], str):
        return f"text, such as {values[0]!r}"
    if isinstance(values[0], int):
        classes = Counter(int(value) for value in values)
        return f"integer, classes {', '.join(f'{key} ({classes[key]})' for key in sorted(classes))}"
    if isinstance(values[0], float):
        return f"number, values {_range(values, '.4g')}"
    return f"{type(values[0]).__name__}, such as {values[0]!r}"


def _describe_arrays(arrays: Sequence[np.ndarray], sample_rate: int | None) -> str:
    shape = ", ".join(_range(sizes, "d") for sizes in zip(*(array.shape for array in arrays), strict=True))
    described = f"{arrays[0].dtype} ({shape})"
    all_values = np.concatenate([array.ravel() for array in arrays])
    if all_values.dtype.kind not in "fiub" or all_values.size == 0:
        return described
    if arrays[0].ndim == 1 and np.isin(all_values, (0, 1)).all():
        present = sorted({int(place) for array in arrays for place in np.flatnonzero(array)})
        return f"{described}, 0 or 1, with 1 at {', '.join(map(str, present)) or 'no place'}"
    described += f", values {_range(all_values, '.4g')}"
    if sample_rate is not None and arrays[0].ndim == 1 and arrays[0].dtype.kind == "f":
        described += f", {_range([array.size / sample_rate for array in arrays], '.2f')} s at {sample_rate:,} Hz"
    return described


def _range(values: Sequence[float] | np.ndarray, form: str) -> str:
    """Write the least and the largest of `values` that are numbers.

    >>> _range([3, 8, 5], "d"), _range([2, 2], "d"), _range([float("nan")], "d")
    ('3 to 8', '2', 'nan')
    """
    numbers = [value for value in values if np.isfinite(value)]
    if not numbers:
        return "nan"
    least, largest = (format(value, form) for value in (min(numbers), max(numbers)))
    return least if least == largest else f"{least} to {largest}"


def explain(error: Exception) -> str:
    """Say what an exception is, and where in the site's code it comes from unless it is one of the project's own."""
    if isinstance(error, OpenFLAudioError):
        return str(error)
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    return f"{message} ({own[-1].filename}, line {own[-1].lineno})" if own else message
