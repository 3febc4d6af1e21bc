"""Policy of a site: what it does not allow is refused in one sentence, before anything is trained."""

import json
import logging
import math
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from pydantic import AfterValidator, Field

from openfl_audio.config import Settings
from openfl_audio.envoy.small_cells import without_rare_letters, without_small_cells
from openfl_audio.errors import PolicyError
from openfl_audio.files import write_whole
from openfl_audio.privacy.accounting import privacy_cost
from openfl_audio.protocol.bundle import Bundle
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.shard_sizes import SPLITS, Sizes

logger = logging.getLogger(__name__)

HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
# A number is told as "fewer than" this, where numbers are rounded.
FEW = 10
MEGABYTE = 1_000_000


def _check_hours(hours: str) -> str:
    if not HOURS.fullmatch(hours):
        raise ValueError("give two times of the day, such as 22:00-06:00")
    return hours


class Policy(Settings):
    """The `policy` of an envoy's settings. Without a value a rule says nothing."""

    users: list[str] | None = Field(
        default=None, description="users whose experiments run here; with TLS their certificates prove who they are"
    )
    corpora: list[str] | None = Field(default=None, description="the corpora that experiments may be for")
    hours: Annotated[str, AfterValidator(_check_hours)] | None = Field(
        default=None,
        description="hours in which an experiment may begin, in the time of this machine, such as 22:00-06:00",
    )
    min_clips: int = Field(default=0, ge=0, description="the least number of clips that a task works on here")
    min_speakers: int = Field(
        default=0, ge=0, description="the least number of speakers of the training split, as the shard tells them apart"
    )
    min_participants: int = Field(
        default=1, ge=1, description="the least number of updates in a round, as the plan of the experiment says"
    )
    metrics: list[str] | None = Field(default=None, description="the names of metrics and losses that may leave")
    min_count: int = Field(
        default=0,
        ge=0,
        description="the least number of clips or words behind a metric, of clips of a class, or of texts with a "
        "letter: few tell of persons",
    )
    max_round_mb: float | None = Field(default=None, gt=0, description="the most megabytes of an update")
    max_day_mb: float | None = Field(default=None, gt=0, description="the most megabytes of all updates of a day")
    precision: Literal["float32", "float16"] | None = Field(
        default=None, description="the type in which updates have to be transmitted"
    )
    secure_aggregation: bool = Field(default=False, description="updates may only leave masked, by secure aggregation")
    max_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="the most epsilon of one experiment, over all its rounds and at its delta, by noise of sites",
    )
    counts: Literal["exact", "rounded", "none"] = Field(
        default="exact", description="numbers in the shard's description: exact, rounded, or none"
    )
    tracebacks: Literal["code", "values"] = Field(
        default="code",
        description="traceback of a task that fails: lines of code alone, or with values, which may name people",
    )

    def judge(self, bundle: Bundle, user: str, is_proven: bool, shard: "Shard", sent_today: int) -> Iterator[str]:
        """Yield the sentences in which an experiment of `user` is refused.

        `is_proven` tells whether the user's name is beyond doubt, and `sent_today` how many bytes have left.
        """
        plan, n_bytes = bundle.plan, bundle.model.n_bytes
        if self.users is not None and (user not in self.users or not is_proven):
            proof = "" if is_proven else ", whose certificate has not signed it"
            yield f"it is one of '{user}'{proof}, and may be one of {_list(self.users)}"
        if self.corpora is not None and plan.corpus not in self.corpora:
            yield f"it is for the corpus {plan.corpus!r}, and may be for {_list(self.corpora)}"
        if self.hours is not None and not is_within(self.hours, datetime.now()):
            yield f"experiments begin here at {self.hours} only"
        if shard.clips < self.min_clips:
            yield f"a task needs {self.min_clips} clips here, and there are fewer"
        if self.min_speakers and (shard.speakers is None or shard.speakers < self.min_speakers):
            counted = "are not counted" if shard.speakers is None else "are fewer"
            yield f"training needs {self.min_speakers} speakers here, and they {counted}"
        if (least := least_participants(plan)) < self.min_participants:
            yield f"its rounds may close with {least} updates, and need {self.min_participants}"
        chosen = {metric for metric, _ in plan.best.models.values()}
        if self.metrics is not None and not chosen.issubset(self.metrics):
            yield f"its best model is chosen by {_list(sorted(chosen))}, and what may leave is {_list(self.metrics)}"
        if self.max_round_mb is not None and n_bytes > self.max_round_mb * MEGABYTE:
            yield f"an update has {n_bytes / MEGABYTE:.3g} MB, and may have {self.max_round_mb:g}"
        if self.max_day_mb is not None and sent_today + n_bytes > self.max_day_mb * MEGABYTE:
            yield f"more than {self.max_day_mb:g} MB would leave today"
        if self.precision is not None and plan.precision != self.precision:
            yield f"its precision is {plan.precision}, and has to be {self.precision}"
        if self.secure_aggregation and plan.secure_aggregation is None:
            yield "its updates are not masked, and have to be"
        if self.max_epsilon is not None:
            yield from refuse_epsilon(plan, self.max_epsilon)

    def check_update(self, results: Mapping[str, TaskResult], n_bytes: int) -> dict[str, TaskResult]:
        """Return of the results of a round what may leave with its update of `n_bytes`.

        Raises PolicyError if nothing may.
        """
        for name, result in results.items():
            if 0 < result.size < self.min_clips:
                raise PolicyError(f"task '{name}' worked on fewer clips than the {self.min_clips} that this site wants")
        if self.max_round_mb is not None and n_bytes > self.max_round_mb * MEGABYTE:
            raise PolicyError(f"an update of {n_bytes / MEGABYTE:.3g} MB is larger than {self.max_round_mb:g} MB")
        return {name: self._released(result) for name, result in results.items()}

    def _released(self, result: TaskResult) -> TaskResult:
        result = without_small_cells(result, self.min_count)
        metrics = {
            name: each if result.counts.get(name, result.size) >= self.min_count else math.nan
            for name, each in self.released_values(result.metrics).items()
        }
        counts = {name: each for name, each in result.counts.items() if name in metrics}
        return result.model_copy(update={"metrics": metrics, "counts": counts})

    def released_values(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return those of the values whose names may leave."""
        return {name: each for name, each in values.items() if self.metrics is None or name in self.metrics}

    def describe(self, description: str) -> str:
        """Return what is told of the shard, of its own description."""
        if self.counts == "none":
            return "not described"
        description = without_rare_letters(description, self.min_count)
        return re.sub(r"\d[\d,]*(\.\d+)?", _rounded_text, description) if self.counts == "rounded" else description

    def sizes(self, sizes: Sizes) -> Sizes:
        """Return the sizes that are told, by which the director bounds what updates weigh: no less than they are."""
        if self.counts == "none":
            return {}
        if self.counts == "exact":
            return sizes
        return {kind: {unit: rounded_up(number) for unit, number in each.items()} for kind, each in sizes.items()}


def refuse_epsilon(plan: ExperimentPlan, most: float) -> Iterator[str]:
    """Yield why an experiment is refused that costs more epsilon than `most` in all its rounds, or has no privacy.

    Noise counts that sites add: each to its own steps, or all together to their secret sum. A director that should add
    it could do without, and sees each update before.
    """
    wanted = f"has to cost an epsilon of at most {most:g}"
    if plan.privacy is None:
        yield f"it has no differential privacy, and {wanted}"
        return
    if isinstance(plan.privacy, SiteLevel) and plan.honest_survivors is None:
        yield f"the director would add its noise, and it {wanted} by noise that sites add: with secure aggregation"
        return
    cost = privacy_cost(plan.privacy, plan.rounds, plan.honest_survivors)
    if cost > most:
        yield f"it costs an epsilon of {cost:.3g} at a delta of {plan.privacy.delta:g}, and may cost {most:g}"


def least_participants(plan: ExperimentPlan) -> int:
    """Return how many updates a round has at least, as far as the plan says."""
    participation = plan.participation
    if participation.deadline_seconds is not None or plan.envoys is None:
        return participation.quorum
    return len(participation.trainers(0, plan.envoys))


def is_within(hours: str, now: datetime) -> bool:
    """Tell whether a time of the day is within hours, which may go past midnight.

    >>> is_within("22:00-06:00", datetime(2026, 1, 1, 23)), is_within("08:00-12:00", datetime(2026, 1, 1, 12))
    (True, False)
    """
    begin, end = hours.split("-")
    time_of_day = f"{now:%H:%M}"
    return begin <= time_of_day < end if begin < end else time_of_day >= begin or time_of_day < end


def rounded_up(number: int) -> int:
    """Return a number rounded up to one digit, and no less than FEW.

    >>> rounded_up(428), rounded_up(3), rounded_up(0)
    (500, 10, 0)
    """
    if number == 0:
        return 0
    step = 10 ** (len(str(number)) - 1)
    return max(FEW, math.ceil(number / step) * step)


def _rounded_text(match: re.Match[str]) -> str:
    number = float(match[0].replace(",", ""))
    if number < FEW:
        return f"fewer than {FEW}"
    step = 10 ** (len(str(int(number))) - 1)
    return f"about {round(number / step) * step:,}"


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


class Shard(Settings):
    """The counts of a shard that a policy compares; `speakers` is None where they are not told apart."""

    clips: int
    speakers: int | None


def shard_of(shard_descriptor: ShardDescriptor, sizes: Sizes) -> Shard:
    """Return the counts of a shard: of its smallest split with clips, and the speakers of its training split."""
    clips = [each["clips"] for each in sizes.values() if each.get("clips")]
    try:
        speakers = getattr(shard_descriptor.get_dataset(SPLITS["train"]), "speakers", None)
    except Exception as error:  # the site's own code may raise anything; tasks will say what is wrong
        logger.info("speakers are not counted: %s", type(error).__name__)
        speakers = None
    return Shard(clips=min(clips, default=0), speakers=None if speakers is None else len({*speakers} - {""}))


class SentToday:
    """The bytes that have left a site today, in a file, so that a restart does not forget them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> int:
        """Return how many bytes have left today."""
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0
        return int(noted["bytes"]) if noted.get("day") == time.strftime("%Y-%m-%d") else 0

    def add(self, n_bytes: int, limit_mb: float | None) -> None:
        """Note that so many bytes are about to leave. Raises PolicyError if those are more than may today."""
        total = self.read() + n_bytes
        if limit_mb is not None and total > limit_mb * MEGABYTE:
            raise PolicyError(f"more than {limit_mb:g} MB would leave today")
        noted = {"day": time.strftime("%Y-%m-%d"), "bytes": total}
        write_whole(self.path, json.dumps(noted).encode(), durable=False)


def without_values(error: BaseException) -> str:
    """Return the traceback of an exception as lines of code, without a value: no message, no variable, no folder."""
    lines = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = [
            f'  File "{module_path(frame.filename)}", line {frame.lineno}, in {frame.name}\n    {frame.line or ""}'
            for frame in traceback.extract_tb(current.__traceback__)
        ]
        kind = type(current)
        lines.append("\n".join(["Traceback (most recent call last):", *frames, f"{kind.__module__}.{kind.__name__}"]))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nwhich came of this exception:\n\n".join(lines) + "\n(the site tells no values: see its worker.log)"


def module_path(file: str) -> str:
    """Return the path of a source below the folder of packages, or of the experiment: the rest is the site's affair."""
    parts = Path(file).parts
    for folder in ("site-packages", "workspace"):
        if folder in parts:
            return Path(*parts[parts.index(folder) + 1 :]).as_posix()
    return parts[-1] if parts else file


def plain_reason(error: Any) -> str:
    """Return why the system refused something, without the names of files."""
    return getattr(error, "strerror", None) or type(error).__name__
