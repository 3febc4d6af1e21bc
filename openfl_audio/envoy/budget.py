"""A site's budget of privacy: what may run where there is one, and what is paid before an update leaves.

What is paid follows from the plan and from what the envoy itself sees. Nothing that a worker says makes it less: any
update with tensors costs a round, and so does any of a round in which this envoy trains. An experiment cannot change or
begin a ledger anew. The director is told that a budget is spent, and no number.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from openfl_audio.config import Settings
from openfl_audio.errors import BudgetSpentError, PolicyError, PrivacyError
from openfl_audio.privacy.accounting import Release
from openfl_audio.privacy.ledger import Account, Budget, Ledger
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.privacy import RecordLevel, SpeakerLevel, refuse_test_noise
from openfl_audio.protocol.tensors import Header

logger = logging.getLogger("envoy")

WITNESS = ".privacy.json"


class PrivacySettings(Settings):
    """The `privacy` of an envoy's settings: a budget that no experiment can exceed or begin anew."""

    corpus: str = Field(
        min_length=1, description="name of the recordings, the same at all envoys that serve some of them"
    )
    unit: Literal["record", "speaker"] = Field(description="what the budget protects; experiments have to say the same")
    epsilon: float = Field(gt=0, description="the most that all experiments together may spend")
    delta: float = Field(gt=0, lt=1, description="the delta of that epsilon: far below one over the number of units")
    ledger: Path = Field(description="file of what has been spent, which all envoys of the corpus share")
    witness: Path | None = Field(
        default=None,
        description="file that remembers the ledger's end, outside of its backup; by default in the envoy's folder",
    )
    metrics: Literal["sent", "none"] = Field(
        default="sent", description="metrics of validation, which are no part of the guarantee: sent, or none"
    )


class SiteBudget:
    """The budget of one envoy."""

    def __init__(self, settings: PrivacySettings, envoy: str, folder: Path) -> None:
        """Open the ledger for `envoy`, whose files are in `folder`.

        Raises PrivacyError if the ledger is damaged, of something else or restored from an old backup, or if noise is
        not secret here.
        """
        refuse_test_noise(f"envoy '{envoy}' has a budget of privacy")
        self.settings, self._envoy = settings, envoy
        self.ledger = Ledger(
            settings.ledger,
            Account(settings.corpus, settings.unit),
            Budget(settings.epsilon, settings.delta),
            envoy,
            settings.witness or folder / WITNESS,
        )

    def judge(self, plan: ExperimentPlan) -> Iterator[str]:
        """Yield the sentences in which an experiment with this plan is refused."""
        privacy, unit = plan.privacy, self.settings.unit
        if not isinstance(privacy, RecordLevel | SpeakerLevel):
            yield f"this site has a budget of privacy, and the experiment protects no {unit}"
        elif privacy.unit != unit:
            yield f"the experiment protects each {privacy.unit}, and the budget of this site is for each {unit}"
        elif self._trains(plan, 0) and (refusal := self._refusal(plan)):
            yield refusal

    def refuse_if_spent(self, plan: ExperimentPlan, task_types: Sequence[str]) -> None:
        """Raise PolicyError if tasks of these types would cost more than is left."""
        if "train" in task_types and (refusal := self._refusal(plan)):
            raise PolicyError(refusal)

    def charge(self, plan: ExperimentPlan, round_number: int, header: Header, buffer: Any) -> bool:
        """Pay for an update before it leaves, durably; return whether it costs anything.

        The very bytes that were paid for in this round cost nothing again. Raises PolicyError where the update must not
        leave, and OSError where nothing can be written.
        """
        if not header.entries and not self._trains(plan, round_number):
            return False
        digest = hashlib.sha256(f"{plan.federation_uuid}\0{round_number}\0".encode())
        digest.update(header.pack())
        digest.update(memoryview(buffer)[: header.data_bytes])
        try:
            return self.ledger.charge(plan.name, round_number, release_of(plan), digest.digest())
        except PrivacyError as error:
            raise PolicyError(self._told(error)) from error

    def released(self, plan: ExperimentPlan, results: Mapping[str, TaskResult]) -> dict[str, TaskResult]:
        """Return of results what may leave: no metric of training, which noise does not protect."""
        validations = {task.name for task in plan.tasks if task.task_type == "validate"}
        kept = validations if self.settings.metrics == "sent" else set()
        return {
            name: each if name in kept else each.model_copy(update={"metrics": {}, "counts": {}})
            for name, each in results.items()
        }

    def _trains(self, plan: ExperimentPlan, round_number: int) -> bool:
        """Tell whether this envoy trains in a round, as far as the plan says."""
        trains = self._envoy not in plan.participation.evaluators
        return any(task.task_type == "train" for task in plan.tasks_for_round(round_number, trains))

    def _refusal(self, plan: ExperimentPlan) -> str:
        try:
            self.ledger.refuse_if_overspent(release_of(plan))
        except PrivacyError as error:
            return self._told(error)
        return ""

    def _told(self, error: PrivacyError) -> str:
        """Return what others are told: that a budget is spent, or that it is not known whether it is."""
        if isinstance(error, BudgetSpentError):
            return str(error)
        logger.error("%s", error)
        return f"the ledger of {self._envoy}'s budget cannot be used"


def release_of(plan: ExperimentPlan) -> Release:
    """Return what a round of training releases, by the plan alone. Raises PrivacyError for a plan without privacy."""
    privacy = plan.privacy
    if not isinstance(privacy, RecordLevel | SpeakerLevel):
        raise PrivacyError(f"the plan of experiment '{plan.name}' has no privacy of records or speakers")
    return Release(privacy.noise_multiplier, privacy.probability, privacy.steps)
