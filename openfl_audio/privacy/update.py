"""A round's update as words that can be summed in secret: its tensors in fixed point, and numbers beside them.

The numbers are the site's weight, whether that was bounded, how many values were clipped, and for each task its clips
and the sums and counts of its metrics that are means. A metric that is no mean stays with its site.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from openfl_audio.errors import PrivacyError, UpdateRefusedError
from openfl_audio.privacy.fixed_point import BLOCK, NUMBER_BITS, WORD, Rounding, decode_number, encode, encode_number
from openfl_audio.privacy.noise import noise_of
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.protocol.aggregate import check_tensor
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.plan import ExperimentPlan, Task
from openfl_audio.protocol.rounds import Results, fault_of
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Header, Tensors, describe
from openfl_audio.protocol.values import distance

# Beside tensors of the model, whose names have no space, an update has its numbers. With privacy of sites it has the
# changes of all trained tensors in one.
NUMBERS_NAME, CHANGES_NAME = "secure aggregation: numbers", "secure aggregation: changes"
NUMBER = np.dtype(f"<u{NUMBER_BITS // 8}")
WEIGHT, BOUNDED, CLIPPED = "weight", "bounded weights", "clipped values"
# NumPy and OpenSSL leave the interpreter's lock while they work.
THREADS = 2
Metrics = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Words:
    """The tensors of an update as words, one behind the other in the order of their header.

    Attributes:
        values: the words, flat.
        weight: what the update weighs.
        clipped: how many values were clipped to their range.
        is_bounded: whether the site has more clips than the largest weight.
    """

    values: np.ndarray
    weight: int
    clipped: int
    is_bounded: bool = False


def words_header(plan: ExperimentPlan, model: Header) -> Header:
    """Return the layout of an update's words: those of the floating tensors. Integers are not summed."""
    if plan.honest_survivors is not None:
        return Header.lay_out({CHANGES_NAME: (WORD, (NoisySum.of(plan, model).length,))}, {})
    return Header.lay_out({name: (WORD, e.shape) for name, e in model.entries.items() if e.is_float}, {})


def masked_header(plan: ExperimentPlan, model: Header, trains: bool, numbers: int) -> Header:
    """Return the layout of a masked update with so many `numbers`, and with words if the round trains."""
    words = words_header(plan, model).entries if trains else {}
    shapes = {name: (entry.dtype, entry.shape) for name, entry in words.items()}
    return Header.lay_out(shapes | {NUMBERS_NAME: (NUMBER, (numbers,))}, {})


def encode_tensors(
    plan: ExperimentPlan,
    model: Tensors,
    update: Tensors,
    clips: int,
    round_number: int,
    site: str,
    into: np.ndarray | None = None,
) -> Words:
    """Return an update of a site, trained on `clips` clips from `model`, as words.

    Without clips they are zeros, or noise alone with privacy of sites; without a model there are none. Without that
    privacy they are written `into` memory for them, where there is some: see `place_of_words`. Raises
    UpdateRefusedError if a tensor holds NaN or infinity, or is too large.
    """
    error_prefix = f"update of envoy '{site}' for round {round_number}"
    rounding = Rounding.of(plan.participation.seed, round_number, site)
    if plan.honest_survivors is not None and model:
        return _encode_with_noise(plan, model, update if clips else {}, rounding, round_number, site)
    settings = plan.secure_aggregation or SecureAggregation()
    floats = {name: tensor.reshape(-1) for name, tensor in model.items() if tensor.dtype.kind == "f"}
    header = Header.lay_out({name: (WORD, (len(tensor),)) for name, tensor in floats.items()}, {})
    words = np.empty(sum(map(len, floats.values())), WORD) if into is None else into
    if not clips:
        words[:] = 0
        return Words(words, 0, 0)
    trained = {name: update[name].reshape(-1) for name in floats}
    for name, current in floats.items():
        check_tensor(name, trained[name], current, error_prefix)
    weight, largest = weight_of(plan.aggregation, settings, clips)
    scale = _clip_scale(plan, floats, trained)

    def encode_block(name: str, start: int) -> int:
        block, first = slice(start, start + BLOCK), header.entries[name].start // WORD.itemsize
        change = np.subtract(trained[name][block], floats[name][block], dtype=np.float64)
        if scale < 1 and name not in untrained:
            change *= scale
        value_range, share = settings.range_of(name), weight / largest
        place = words[first + start : first + start + len(change)]
        return encode(change, value_range, share, settings.bits, rounding, first + start, place)[1]

    untrained = {*plan.untrained}
    return Words(words, weight, sum(_in_threads(encode_block, floats)), largest > 1 and clips > largest)


def _encode_with_noise(
    plan: ExperimentPlan, model: Tensors, update: Tensors, rounding: Rounding, round_number: int, site: str
) -> Words:
    """Return an update with a site's share of the noise, as words. Of what is clipped it says nothing."""
    prefix = f"update of envoy '{site}' for round {round_number}"
    trained = {name: tensor.reshape(-1) for name, tensor in update.items() if tensor.dtype.kind == "f"}
    for name, values in trained.items():
        check_tensor(name, values, model[name].reshape(-1), prefix)

    def change(name: str, first: int, last: int) -> np.ndarray:
        if not trained:
            return np.zeros(last - first)
        return np.subtract(trained[name][first:last], model[name].reshape(-1)[first:last], dtype=np.float64)

    norm = distance((model[name].reshape(-1), trained[name]) for name in trained if name not in plan.untrained)
    try:
        noisy = NoisySum.of(plan, describe(model, {}), round_number)
        words = noisy.encode(change, norm, rounding, noise_of(site, round_number))
    except PrivacyError as error:
        raise UpdateRefusedError(f"{prefix}: {error}") from None
    return Words(words, bool(trained), 0)


def place_of_words(plan: ExperimentPlan, model: Header, memory: np.ndarray) -> np.ndarray | None:
    """Return that part of a model's memory, uint8, in which each word has the place of the value it is made of.

    Return None where values and words differ in size or order.
    """
    words = words_header(plan, model)
    floats = {name: entry for name, entry in model.entries.items() if entry.is_float}
    if floats.keys() != words.entries.keys() or any(each.dtype.itemsize != WORD.itemsize for each in floats.values()):
        return None
    shifts = {each.start - words.entries[name].start for name, each in floats.items()}
    if len(shifts) != 1:
        return None
    (first,) = shifts
    return memory[first : first + words.data_bytes].view(WORD)


def weight_of(aggregation: Aggregation, settings: SecureAggregation, clips: int) -> tuple[int, int]:
    """Return what an update trained on `clips` clips weighs, and the largest weight that one may have."""
    if not getattr(aggregation.rule, "weighted", True):
        return 1, 1
    return min(clips, settings.largest_weight), settings.largest_weight


def mean_share(aggregation: Aggregation, settings: SecureAggregation, weight: float) -> float:
    """Return the sum of weights over the largest one, by which a sum of changes becomes their mean."""
    return weight / weight_of(aggregation, settings, 1)[1]


def encode_numbers(
    plan: ExperimentPlan, metrics: Metrics, words: Words, results: Results, tasks: Sequence[Task], sites: int
) -> list[int]:
    """Return the numbers of an update as integers modulo 2^NUMBER_BITS, in the order that `metrics` gives.

    `metrics` has the names that any of the `sites` reports, by task. Raises UpdateRefusedError for a number that is too
    large.
    """
    values: dict[str, float] = {WEIGHT: words.weight, BOUNDED: words.is_bounded, CLIPPED: words.clipped}
    for task in tasks:
        result = results[task.name]
        values[task.name] = result.size
        for metric in metrics[task.name]:
            count = _count(plan, task, result, metric)
            values[f"{task.name} {metric} count"] = count
            values[f"{task.name} {metric} sum"] = result.metrics[metric] * count if count else 0.0
    try:
        return [encode_number(values[name], sites) for name in names_of(metrics)]
    except ValueError as error:
        raise UpdateRefusedError(f"a metric: {error}") from None


def decode_numbers(metrics: Metrics, totals: Sequence[int]) -> tuple[Results, float, int, int]:
    """Return results over all sites by task, the sum of weights, how many were bounded, and how many values clipped."""
    values = dict(zip(names_of(metrics), map(decode_number, totals), strict=True))
    results = {}
    for task, names in metrics.items():
        counts = {metric: round(values[f"{task} {metric} count"]) for metric in names}
        means = {
            metric: values[f"{task} {metric} sum"] / count if count > 0 else float("nan")
            for metric, count in counts.items()
        }
        results[task] = TaskResult(size=round(values[task]), metrics=means, counts=counts)
    return results, values[WEIGHT], round(values[BOUNDED]), round(values[CLIPPED])


def names_of(metrics: Metrics) -> list[str]:
    """Return the names of an update's numbers, in their order."""
    names = [WEIGHT, BOUNDED, CLIPPED]
    for task in sorted(metrics):
        names.append(task)
        names += [f"{task} {metric} {kind}" for metric in sorted(metrics[task]) for kind in ("sum", "count")]
    return names


def mergeable(plan: ExperimentPlan, tasks: Sequence[Task], results: Results) -> dict[str, list[str]]:
    """Return the names of the metrics that are means, and so are summed, by task."""
    return {
        task.name: sorted(name for name in results[task.name].metrics if plan.unit_of(task, name) is not None)
        for task in tasks
    }


def union(metrics: Sequence[Metrics]) -> dict[str, list[str]]:
    """Return the names of metrics that any site reports, by task."""
    tasks = sorted({task for each in metrics for task in each})
    return {task: sorted({name for each in metrics for name in each.get(task, ())}) for task in tasks}


def _count(plan: ExperimentPlan, task: Task, result: TaskResult, metric: str) -> int:
    """Return how much a metric's value is a mean over: 0 where it does not count."""
    if metric not in result.metrics or fault_of(plan, task, result, metric):
        return 0
    return result.counts.get(metric, result.size)


def _clip_scale(plan: ExperimentPlan, model: Tensors, update: Tensors) -> float:
    """Return by which factor the site shortens its update, so that it is as near to the model as the plan wants."""
    if plan.aggregation.clip_norm is None:
        return 1.0
    norm = distance((model[name], update[name]) for name in model if name not in plan.untrained)
    return plan.aggregation.clip_scales([norm])[0]


def _in_threads(work: Callable[[str, int], int], tensors: Tensors) -> Iterator[int]:
    """Yield what `work` returns for the name of each tensor and the beginning of each block of it."""
    places = [(name, start) for name, tensor in tensors.items() for start in range(0, len(tensor), BLOCK)]
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(lambda place: work(*place), places)
