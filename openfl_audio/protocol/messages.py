"""The messages of the service `openfl_audio.Rounds`, as JSON: requests, updates' metadata, and answers.

A request with a key that is not known is refused. Of an answer such keys are ignored: a newer director may say more.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

# More than any corpus has; a mean's weights stay far from overflow.
MAX_CLIPS = 10**9
# Losses and scores in one report of progress.
MAX_VALUES = 10
MAX_STEPS = 10**12
# Far more than one of this project's certificates has.
MAX_CERTIFICATE_CHARACTERS = 8000
# What tasks printed, in one report of progress.
MAX_LOG_CHARACTERS = 8000
# An experiment that waits for sites to approve it says so in these words, and then whose.
APPROVAL = "approval by "


class Message(BaseModel):
    """Base of all messages that are sent to the director."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AttendRequest(Message):
    """An envoy is there, for as long as the call is open. `instance` tells it from a restarted one."""

    envoy: str
    instance: str


class ModelRequest(Message):
    """An envoy requests this round's model, or a user a kept one."""

    experiment: str
    envoy: str | None = None
    which: str = "last"


class ExperimentRequest(Message):
    """A user requests something of an experiment."""

    experiment: str


class DetailsRequest(ExperimentRequest):
    """A person requests an experiment as it is now, with the records of its last rounds if `latest`."""

    latest: bool = True


class DropRequest(ExperimentRequest):
    """A user or an operator wants an experiment to continue without one of its envoys."""

    envoy: str


class LogRequest(ExperimentRequest):
    """A user requests what the tasks of an envoy printed; `follow` waits for more until the experiment has ended."""

    envoy: str
    follow: bool = False


class HistoryRequest(ExperimentRequest):
    """A user requests the records of rounds from record `first` on.

    `follow` waits for those to come, and `live` also asks what happens in the open round.
    """

    first: int = Field(default=0, ge=0)
    follow: bool = True
    live: bool = False


class StatusRequest(Message):
    """A user requests the state of the whole federation."""


class TaskResult(Message):
    """The result of one task on one envoy: over how many clips, and the metrics' means over them.

    `counts` has what a metric is a mean over, where that is something else than clips.
    """

    size: int = Field(ge=0, le=MAX_CLIPS)
    metrics: dict[str, float] = Field(max_length=1000)
    counts: dict[str, Annotated[int, Field(ge=0, le=MAX_CLIPS)]] = Field(default={}, max_length=1000)


class UpdateEnvelope(Message):
    """The sender and the round of an update: all that must be known to refuse it."""

    experiment: str
    envoy: str
    round: int
    results: Any
    # Of a secure round: the attempt that has masked it.
    attempt: int = 0

    def __str__(self) -> str:
        return f"update of envoy '{self.envoy}' for round {self.round}"

    def reason_in(self, error: Exception) -> str:
        """Return why the update is refused, for where its envoy and round are said: the error alone names both."""
        return str(error).removeprefix(f"{self}: ")


class UpdateMessage(UpdateEnvelope):
    """Metadata of one envoy's answer to one round."""

    results: dict[str, TaskResult] = Field(max_length=100)


# The stage of a request to join the next attempt.
JOIN = -1


class SecureRequest(Message):
    """An envoy takes part in a stage of a secure round, and waits for what follows it.

    Attributes:
        attempt: the attempt that the stage belongs to; when joining one, the last that the envoy has taken part in.
        stage: the number of the stage (`privacy.transcript.Stage`), or JOIN.
        content: the message of the stage; one without joins, or has sent an update.
        refusal: why the envoy gives up the attempt, or, when joining, the round; "" while it does not.
    """

    experiment: str
    envoy: str
    round: int = Field(ge=0)
    attempt: int = Field(ge=0)
    stage: int = Field(ge=JOIN, le=4)
    content: dict[str, Any] = {}
    refusal: str = Field(default="", max_length=1000)


class ProgressReport(Message):
    """Progress of the task of an envoy, as the envoy reports it while the task runs.

    Attributes:
        round: the round that the task belongs to.
        seconds: how long the steps have taken.
        step: how many steps are done.
        total: how many there are, None where that is not known.
        clips: how many clips these steps took, 0 where that is not known.
        values: losses and the like.
        memory_bytes: the memory that the worker holds.
        gpu_memory_bytes: the memory that it holds on its GPU, 0 without one.
        log: what the worker has printed since the last report.
    """

    experiment: str
    envoy: str
    round: int = Field(ge=0)
    task: str = Field(max_length=64)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    step: int = Field(default=0, ge=0, le=MAX_STEPS)
    total: int | None = Field(default=None, ge=0, le=MAX_STEPS)
    clips: int = Field(default=0, ge=0, le=MAX_STEPS)
    values: dict[Annotated[str, Field(max_length=64)], Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default={}, max_length=MAX_VALUES
    )
    memory_bytes: int = Field(default=0, ge=0, le=MAX_STEPS)
    gpu_memory_bytes: int = Field(default=0, ge=0, le=MAX_STEPS)
    log: str = Field(default="", max_length=MAX_LOG_CHARACTERS)


class ApprovalReport(Message):
    """An envoy says that an experiment waits for the approval of its site, or waits for it no more."""

    experiment: str
    envoy: str
    waits: bool


class SignedHead(Message):
    """Head of a record, with a signature in base64 and the certificate (PEM) of its key; without TLS both are "".

    An envoy's certificate is left out on the wire, as TLS has shown it.
    """

    number: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    signature: str = Field(default="", max_length=200)
    certificate: str = Field(default="", max_length=MAX_CERTIFICATE_CHARACTERS)


class HeadRequest(Message):
    """An envoy gives the head of its record for that of the director's."""

    envoy: str
    head: SignedHead


class Answer(BaseModel):
    """Base of all messages that the director sends."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Order(Answer):
    """The director tells an envoy what to do: which experiment to run, "" for none.

    With `prestart` it also keeps a spare worker for the experiment that may come.
    """

    experiment: str
    # On the wire it has the name that version 0.1.0 gave it.
    prestart: bool = Field(validation_alias=AliasChoices("prestart", "warm"), serialization_alias="warm")


class GlobalModel(Answer):
    """Metadata of the model that an envoy gets.

    Attributes:
        round: the round that begins with it.
        rate_factor: what the learning rate of the optimizer is multiplied by in that round.
    """

    round: int
    rate_factor: float = Field(default=1.0, gt=0, le=1)


class SecureSum(Answer):
    """Secure aggregation in one round.

    Attributes:
        envoys: whose updates are in the sum.
        of: how many envoys the plan names.
        threshold: how many there must be.
        attempt: which attempt it was.
        approving: at how many of `envoys` the site approves code, so that no other code can show an update.
    """

    envoys: list[str]
    of: int
    threshold: int
    attempt: int
    approving: int

    @property
    def against(self) -> str:
        """Return which director learns nothing but the sum.

        One that breaks the rules could deliver code that shows an update, where a site does not approve code.
        """
        return "a malicious director" if self.approving == len(self.envoys) else "a curious director"


class PrivacySpent(Answer):
    """Differential privacy that an experiment has cost so far.

    Attributes:
        unit: what is protected: "record", "speaker" or "site".
        delta: the delta at which epsilon is told.
        adjacency: between which data epsilon is told: those that differ by one unit, added or removed. Records of
            earlier builds have none (`accounting.explained`).
        trust: whom a site trusts for that; likewise.
        epsilon: by envoy: what its updates have cost its units, whether they counted or not.
    """

    unit: str
    delta: float
    adjacency: str | None = None
    trust: str | None = None
    epsilon: dict[str, float]


class RoundRecord(Answer):
    """The record of one round.

    Attributes:
        best: whether the model the round began with is the best one so far.
        metrics: means over all clips, by task and name.
        means_of_sites: the metrics, by task, whose means are not their values over all clips.
        envoys: each envoy's metrics, and the `size` they are means over, by envoy, task and name.
        refused: why an update did not count, by envoy.
        missing: the participants that had not answered when the round closed.
        notes: what else did not count, or not in full, by envoy.
        seconds: how long the round was open.
        bytes_up: bytes that all envoys together have sent, in updates and in the stages of a secure round.
        bytes_down: bytes that all envoys together have received, in models and in answers to these stages.
        secure: how the sum of updates was made, None where the director has seen each update.
        timings: seconds of each envoy for "download", "tasks" and "upload", as far as they were measured.
        aggregation: what the aggregation tells of its result, such as the `adapter_error`, by name.
        privacy: what the experiment has cost up to this round, None where it has no differential privacy.
    """

    round: int
    best: bool
    metrics: dict[str, dict[str, float]]
    means_of_sites: dict[str, list[str]] = {}  # version 0.1.0 has none
    envoys: dict[str, dict[str, dict[str, int | float]]]
    refused: dict[str, str]
    missing: list[str]
    notes: dict[str, list[str]] = {}  # version 0.1.0 has none
    seconds: float
    bytes_up: int
    bytes_down: int
    timings: dict[str, dict[str, float]] = {}  # version 0.1.0 has none
    aggregation: dict[str, float] = {}  # version 0.1.0 has none
    secure: SecureSum | None = None
    privacy: PrivacySpent | None = None


class Waits(Answer):
    """An experiment waits for envoys, or for what the director lacks, or resumes, when `waits` is ""."""

    waits: str


class EnvoyProgress(Answer):
    """State of an envoy in the open round.

    Attributes:
        state: "done" when its update counts, "refused" when it does not, "offline", "waits for approval" of its site,
            or "works".
        since: when it went away, in seconds of the director's clock; None unless it is offline.
        why: why its update does not count, "" unless it is refused.
        silent_seconds: for how long it has not reported, None while its reports come.
        task: what it works on, as far as it reports that.
        transfer: "download" while it receives the round's model, "upload" while it sends its update.
        bytes_moved: bytes of the transfer that have crossed.
        bytes_total: how many there are.
        clips_per_second: its pace, None where that is not known.
        seconds_left: how long the steps or the transfer will take at this pace, None where that is not known.
        memory_bytes: the memory that its worker held when it last reported, 0 where that is not known.
        gpu_memory_bytes: the memory that its worker held on its GPU.
    """

    name: str
    state: str
    since: float | None = None
    why: str = ""
    silent_seconds: float | None = None
    task: str = ""
    step: int = 0
    total: int | None = None
    values: dict[str, float] = {}
    transfer: str = ""
    bytes_moved: int = 0
    bytes_total: int = 0
    clips_per_second: float | None = None
    seconds_left: float | None = None
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0


class LiveRound(Answer):
    """The open round, while it lasts.

    Attributes:
        live: the number of the round, from 0.
        rounds: how many rounds train.
        seconds: how long it has been open.
        seconds_left: how long the experiment will take if its rounds take as long as the last one.
        envoys: what its participants do; of many, those that are not done are named, and others are only counted.
        others: how many participants are not named.
    """

    live: int
    rounds: int
    seconds: float
    seconds_left: float | None
    envoys: list[EnvoyProgress]
    others: int = 0


class SecureAnswer(Answer):
    """Step that an envoy takes next in a secure round.

    Attributes:
        state: "wait" to ask again, "go" on to the next stage with `content`, "lost" to join the next attempt, as this
            one goes on without the envoy or has failed, "over" as the round has ended.
        attempt: the attempt.
        counted: whether the envoy's update is in the sum of a round that has ended.
    """

    state: Literal["wait", "go", "lost", "over"]
    attempt: int = 0
    counted: bool = False
    content: dict[str, Any] = {}


class Reported(Answer):
    """The director has noted a report of progress, and would like the next one after so many seconds."""

    seconds: float


def say_waits(waits: str) -> str:
    """Return what an experiment does that waits, as people say it.

    >>> say_waits("approval by site_b"), say_waits("site_b is offline"), say_waits("")
    ('waits for approval by site_b', 'waits: site_b is offline', 'resumes')
    """
    if not waits:
        return "resumes"
    return f"waits for {waits}" if waits.startswith(APPROVAL) else f"waits: {waits}"


class Ended(Answer):
    """An experiment's history is at its end for now; `error` says why an experiment failed."""

    status: str
    error: str


class BestMetric(Answer):
    """The metric that chooses the best model, and its direction, "max" or "min"."""

    metric: str
    direction: str


class ExperimentSummary(Answer):
    """The entry of one experiment in a list of all.

    Attributes:
        round: the current round, from 0.
        rounds: how many rounds train.
        envoys: the members.
        waiting_for: participants of the round that have not answered yet.
        waits: what it waits for: envoys before it begins, then what the director lacks; "" if it does not wait.
        seconds_per_round: how long the last round took.
        error: why it failed, "" if it did not, or if it is another user's.
        submitted: when it was submitted, in seconds of the director's clock; 0 if that is not known.
        ended: when it ended, None while it has not.
    """

    name: str
    owner: str
    corpus: str = ""
    status: str
    round: int = 0
    rounds: int = 0
    best: BestMetric | None = None
    envoys: list[str] = []
    waiting_for: list[str] = []
    waits: str = ""
    seconds_per_round: float | None = None
    error: str
    submitted: float = 0.0
    ended: float | None = None


class ExperimentDetails(ExperimentSummary):
    """An experiment as its owner sees it.

    Attributes:
        history: the records of its last rounds.
        now: the open round, None where none is open.
        departed: why an envoy has left the experiment, by envoy.
        plan: the experiment's plan, as the notebook sent it.
    """

    best: BestMetric
    history: list[RoundRecord]
    now: LiveRound | None = None
    departed: dict[str, str] = {}
    plan: dict[str, Any] = {}


class EnvoySummary(Answer):
    """The entry of one envoy in a list of all.

    Attributes:
        experiment: the one it works on, "" for none.
        since: when it came or went away, in seconds of the director's clock.
        progress: what it does in the open round of its experiment.
        last_error: the last line of why an experiment last failed on it, "" for users, as it may be another one's.
        sizes: the sizes of its shard, by type of task and unit.
        versions: its versions of Python and libraries, by name.
        certificate_expires: when its certificate expires, in seconds of the clock; None without TLS.
    """

    name: str
    corpus: str
    online: bool
    experiment: str
    since: float = 0.0
    progress: EnvoyProgress | None = None
    last_error: str = ""
    sizes: dict[str, dict[str, int]] = {}
    versions: dict[str, str] = {}
    certificate_expires: float | None = None


class FederationStatus(Answer):
    """The envoys and the experiments of a director."""

    envoys: list[EnvoySummary]
    experiments: list[ExperimentSummary]


class Credit(Answer):
    """The director grants an upload credit for so many more chunks, of so many bytes at most."""

    chunks: int
    chunk_bytes: int


class Counted(Answer):
    """The director has received an update; `counted` says whether it counts."""

    counted: bool


class HeadAnswer(Answer):
    """The director has kept the head of an envoy's record, and gives that of its own."""

    head: SignedHead


class Accepted(Answer):
    """The director has done what was requested."""
