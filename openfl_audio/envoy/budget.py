"""A site's budget of privacy: what may run where there is one, and what is paid before an update leaves.

What is paid follows from the plan and from what the envoy itself sees. Nothing that a worker says makes it less: any
update with tensors costs a round, and so does any of a round in which this envoy trains. An experiment cannot change or
begin a ledger anew. The director is told that a budget is spent, and no number.
"""

import hashlib
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from openfl_audio.config import Settings
from openfl_audio.envoy.noisy_metrics import SHARE, with_noise
from openfl_audio.errors import BudgetSpentError, PolicyError, PrivacyError
from openfl_audio.privacy.accounting import Release
from openfl_audio.privacy.ledger import Account, Budget, Ledger
from openfl_audio.privacy.noise import Noise
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.plan import ExperimentPlan, Task
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
    metrics: Literal["sent", "none", "noisy"] = Field(
        default="sent",
        description="metrics of validation: sent, which is no part of the guarantee; none; or the accuracy, noisy",
    )
    metrics_noise: float | None = Field(
        default=None,
        gt=0,
        description="noise multiplier of noisy metrics: each validation is paid from the budget as a release of all",
    )

    @model_validator(mode="after")
    def check_noisy(self) -> "PrivacySettings":
        """Raise ValueError for noise that would be none, or would not protect the unit."""
        if (self.metrics == "noisy") != (self.metrics_noise is not None):
            raise ValueError("metrics noisy and metrics_noise, such as 20, go together: give both or neither")
        if self.metrics == "noisy" and self.unit == "speaker":
            raise ValueError(
                "nothing bounds a speaker's clips in a validation, so noise does not protect them: use metrics none"
            )
        return self


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
        elif refusal := self._refusal(plan, [task.task_type for task in self._tasks(plan, 0)]):
            yield refusal

    def refuse_if_spent(self, plan: ExperimentPlan, task_types: Sequence[str]) -> None:
        """Raise PolicyError if tasks of these types would cost more than is left."""
        if refusal := self._refusal(plan, task_types):
            raise PolicyError(refusal)

    def charge(self, plan: ExperimentPlan, round_number: int, header: Header, buffer: Any) -> Release | None:
        """Pay for an update before it leaves, durably; return what it releases, or None if it costs nothing.

        The very bytes that were paid for in this round cost nothing again. Raises PolicyError where the update must not
        leave, and OSError where nothing can be written.
        """
        trains = any(task.task_type == "train" for task in self._tasks(plan, round_number))
        if not header.entries and not trains:
            return None
        return self._pay(plan, round_number, release_of(plan), header.pack(), memoryview(buffer)[: header.data_bytes])

    def charge_metrics(
        self, plan: ExperimentPlan, round_number: int, released: Mapping[str, TaskResult]
    ) -> Release | None:
        """Pay for the noisy metrics that `released` has returned, as `charge` does.

        Each call costs: the noise was drawn anew, also where it has come to the same numbers as before.
        """
        release = self._release_of_metrics(len(_validations(plan).keys() & released.keys()))
        return None if release is None else self._pay(plan, round_number, release, secrets.token_bytes())

    def released(self, plan: ExperimentPlan, results: Mapping[str, TaskResult]) -> dict[str, TaskResult]:
        """Return of results what may leave: no metric of training, which noise does not protect.

        What is noisy is new at every call, and has to be paid for by `charge_metrics` before it leaves.
        """
        validations, noise = _validations(plan), Noise()

        def what_leaves(name: str, result: TaskResult) -> TaskResult:
            if name in validations and self.settings.metrics == "sent":
                return result
            if name in validations and self.settings.metrics_noise is not None:
                counts_clips = plan.unit_of(validations[name], SHARE) == "clips"
                known = result if counts_clips else result.model_copy(update={"metrics": {}})
                return with_noise(name, known, self.settings.metrics_noise, noise)
            return result.model_copy(update={"metrics": {}, "counts": {}})

        return {name: what_leaves(name, each) for name, each in results.items()}

    def _tasks(self, plan: ExperimentPlan, round_number: int) -> list[Task]:
        """Return this envoy's tasks of a round, as far as the plan says."""
        return plan.tasks_for_round(round_number, trains=self._envoy not in plan.participation.evaluators)

    def _release_of_metrics(self, validations: int) -> Release | None:
        """Return what so many validations release, None where that is nothing or no part of the guarantee."""
        noise_multiplier = self.settings.metrics_noise
        return None if noise_multiplier is None or not validations else Release(noise_multiplier, 1.0, validations)

    def _pay(self, plan: ExperimentPlan, round_number: int, release: Release, *content: Any) -> Release | None:
        digest = hashlib.sha256(f"{plan.federation_uuid}\0{round_number}\0".encode())
        for part in content:
            digest.update(part)
        try:
            paid = self.ledger.charge(plan.name, round_number, release, digest.digest())
        except PrivacyError as error:
            raise PolicyError(self._told(error)) from error
        return release if paid else None

    def _refusal(self, plan: ExperimentPlan, task_types: Sequence[str]) -> str:
        metrics = self._release_of_metrics(task_types.count("validate"))
        try:
            planned = [release_of(plan)] if "train" in task_types else []
            planned += [metrics] if metrics is not None else []
            if planned:
                self.ledger.refuse_if_overspent(*planned)
        except PrivacyError as error:
            return self._told(error)
        return ""

    def _told(self, error: PrivacyError) -> str:
        """Return what others are told: that a budget is spent, or that it is not known whether it is."""
        if isinstance(error, BudgetSpentError):
            return str(error)
        logger.error("%s", error)
        return f"the ledger of {self._envoy}'s budget cannot be used"


def _validations(plan: ExperimentPlan) -> dict[str, Task]:
    return {task.name: task for task in plan.tasks if task.task_type == "validate"}


def release_of(plan: ExperimentPlan) -> Release:
    """Return what a round of training releases, by the plan alone. Raises PrivacyError for a plan without privacy."""
    privacy = plan.privacy
    if not isinstance(privacy, RecordLevel | SpeakerLevel):
        raise PrivacyError(f"the plan of experiment '{plan.name}' has no privacy of records or speakers")
    return Release(privacy.noise_multiplier, privacy.probability, privacy.steps)
