"""Small cells: a class, or a letter, of few clips tells of persons, so nothing that a table says of it leaves.

A workload that counts by class reports shares of its clips: those that are of a class as `true/CLASS`, and others as
NAME/CLASS, or NAME/CLASS/OTHER for what clips of one class were taken for.
"""

import math
from collections.abc import Mapping

import yaml

from openfl_audio.protocol.messages import TaskResult

TRUE = "true"
LETTERS = "letters"


def withheld_cells(result: TaskResult, least: int) -> set[str]:
    """Return the names of metrics that tell of a class with fewer than `least` clips, and more than none.

    The clips of all classes together are known. Where a single class is small its number would be the rest, so the
    next smallest is withheld with it.
    """
    clips = {
        name.split("/")[1]: round(share * result.counts.get(name, result.size))
        for name, share in result.metrics.items()
        if name.startswith(f"{TRUE}/") and math.isfinite(share)
    }
    small = {each for each, number in clips.items() if 0 < number < least}
    others = {each: number for each, number in clips.items() if number >= least}
    if len(small) == 1 and others:
        small.add(min(others, key=lambda each: (others[each], each)))
    return {name for name in result.metrics if small.intersection(name.split("/")[1:])}


def without_small_cells(result: TaskResult, least: int) -> TaskResult:
    """Return the result of a task without metrics that tell of a class with few clips."""
    withheld = withheld_cells(result, least)
    if not withheld:
        return result
    kept: Mapping[str, float] = {name: each for name, each in result.metrics.items() if name not in withheld}
    counts = {name: each for name, each in result.counts.items() if name not in withheld}
    return result.model_copy(update={"metrics": kept, "counts": counts})


def without_rare_letters(description: str, least: int) -> str:
    """Return a shard's description without the letters that fewer than `least` of its texts have."""
    if not least or f"\n{LETTERS}:" not in description:
        return description
    values = yaml.safe_load(description)
    values[LETTERS] = {letter: count for letter, count in values[LETTERS].items() if count >= least}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1_000)
