"""Metrics of tasks that are means: with what they were taken over, so that the parts of several sites merge exactly.

Over sites with values m_i, each a mean over n_i, the value over all is sum(n_i * m_i) / sum(n_i).
"""

from collections.abc import Mapping
from typing import Any

# The end of a metric's name where its values are means of envoys' values, not values over all clips.
MEAN_OF_SITES = " (mean of sites)"


class MeanOver(float):
    """A metric's value that is a mean over `count` words, labels, frames or whatever is counted.

    A task returns it where the mean is over something else than its size counts. It is a float everywhere else.
    """

    count: int

    def __new__(cls, value: float, count: int) -> "MeanOver":
        """Raise ValueError if `count` is negative."""
        if count < 0:
            raise ValueError(f"a mean over {count}: a count is 0 or more")
        mean = super().__new__(cls, value)
        mean.count = int(count)
        return mean

    def __getnewargs__(self) -> tuple[Any, ...]:
        return float(self), self.count


def shown_name(record: Mapping[str, Any], task: str, metric: str) -> str:
    """Return the name by which a round's `metric` of a task is shown: it says where the value is a mean of sites."""
    return metric + MEAN_OF_SITES * (metric in record.get("means_of_sites", {}).get(task, []))
