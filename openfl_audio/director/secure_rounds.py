"""Secure rounds at the director: attempts, how long their stages wait, and what envoys are answered.

An attempt with too few envoys, or with shares that are false, fails with nothing unmasked, and the next one begins with
fresh keys. Once envoys may have unmasked a sum, only the same survivors are asked again: they give no shares for
others.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from openfl_audio.director.aggregate import SLICE_ITEMS, NoisySecretSum, SecretSum
from openfl_audio.director.intake import Intake
from openfl_audio.director.run import Phase, Run
from openfl_audio.errors import BelowThresholdError, RoundFailedError, SecureAggregationError
from openfl_audio.privacy.coordinator import Coordinator
from openfl_audio.privacy.masks import Mask, add_masks
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.privacy.participant import NUMBERS, TENSORS
from openfl_audio.privacy.replay import entry_of_sum, replay
from openfl_audio.privacy.transcript import Agreement, Context, Keys, Shares, Stage, Unmasking
from openfl_audio.privacy.update import NUMBERS_NAME, decode_numbers, mean_share, union
from openfl_audio.protocol.archive import open_archive
from openfl_audio.protocol.bundle import fingerprint, sha256_of_model
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.messages import JOIN, SecureAnswer, SecureRequest, UpdateEnvelope
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import TensorFile, bytes_of

logger = logging.getLogger(__name__)

# Attempts of one round, after which the experiment fails; it may be resumed.
MAX_ATTEMPTS = 20
LONG_POLL_SECONDS = 20.0
# A reason is kept in the history.
MAX_NOTE = 500


class SecureRounds:
    """The secure rounds of one experiment.

    Attributes:
        coordinator: the open attempt, None between two rounds.
        secret: how the mean of changes follows from masked updates, once a sum is counted.
    """

    def __init__(self, run: Run, intake: Intake) -> None:
        self._run, self._intake = run, intake
        self._state, self._rounds, self._plan = run.state, run.rounds, run.plan
        self._last_event = 0.0
        self._settings = run.plan.secure_aggregation or SecureAggregation()
        self._plan_sha256 = self._failure = ""
        self.coordinator: Coordinator | None = None
        self.secret: SecretSum | NoisySecretSum | None = None

    async def run_round(self, seconds_open: Callable[[], float]) -> None:
        """Make attempts until one has a sum, or the experiment has ended.

        `seconds_open` tells for how long the round has been open. Raises RoundFailedError if no attempt can succeed.
        """
        for _ in range(MAX_ATTEMPTS):
            await self._begin()
            try:
                await self._run_stages(seconds_open)
                if not self._run.ended:
                    await asyncio.to_thread(self._count)
                self._run.answered.notify()
                return
            except SecureAggregationError as error:
                self._note_failure(str(error))
                if isinstance(error, BelowThresholdError) and not self._may_be_enough():
                    break
        raise RoundFailedError(
            f"round {self._rounds.round_number}: {self._failure}"
            + "".join(f"; envoy '{envoy}': {reason}" for envoy, reason in self._rounds.refused.items())
        )

    def takes(self, envoy: str, attempt: int) -> bool:
        """Tell whether an update that was masked for an attempt is awaited."""
        coordinator = self.coordinator
        is_open = coordinator is not None and coordinator.context.attempt == attempt
        return is_open and self._open().stage is Stage.UPDATE and envoy in self._open().awaited

    def take_update(self, envoy: str, attempt: int) -> bool:
        """Note that a masked update is there, whole. Returns whether it counts."""
        if not self.takes(envoy, attempt):
            return False
        self._open().take_update(envoy)
        self._notify()
        return True

    def metrics(self) -> dict[str, list[str]]:
        """Return the names of the metrics that the envoys of the attempt report, by task."""
        return union([keys.metrics for keys in self.coordinator.roster]) if self.coordinator else {}

    async def answer(self, request: SecureRequest) -> SecureAnswer:
        """Take in the message of a stage, and answer when there is what follows, or a long poll is over."""
        self._take(request)
        deadline = time.monotonic() + LONG_POLL_SECONDS
        while True:
            answer = self._answer_now(request)
            seconds = deadline - time.monotonic()
            if answer.state != "wait" or seconds <= 0:
                return answer
            await self._run.answered.wait(seconds)

    async def _begin(self) -> None:
        """Begin the next attempt, with fresh keys."""
        self._state.secure_attempt += 1
        await self._run.lacks.retry(self._run.folder.save_state)
        self._plan_sha256 = self._plan_sha256 or await asyncio.to_thread(_hash_of, self._run.folder.archive)
        model_sha256 = await asyncio.to_thread(_hash_of_model, self._run.folder.model)
        asked = self._state.secure_survivors or list(self._rounds.participants)
        context = Context(
            experiment=self._plan.name,
            plan_sha256=self._plan_sha256,
            round=self._rounds.round_number,
            model_sha256=model_sha256,
            attempt=self._state.secure_attempt,
            participants=sorted(self._plan.envoys or ()),
            settings=self._settings,
        )
        self.coordinator = Coordinator(context, asked)
        self._notify()

    async def _run_stages(self, seconds_open: Callable[[], float]) -> None:
        coordinator = self._open()
        while coordinator.stage is not Stage.DONE:
            await self._wait_for_stage(coordinator, seconds_open)
            if self._run.ended:
                return
            bound, stage = self._state.secure_survivors, coordinator.stage
            coordinator.close_stage()
            if stage is Stage.UPDATE and bound and coordinator.survivors != bound:
                raise SecureAggregationError(
                    f"{coordinator.context}: updates of {coordinator.survivors} have come, and envoys may have "
                    f"unmasked the sum of {bound}: they give no shares for another one"
                )
            if stage is Stage.AGREEMENT:
                self._state.secure_survivors = coordinator.survivors
                await self._run.lacks.retry(self._run.folder.save_state)
            self._notify()

    async def _wait_for_stage(self, coordinator: Coordinator, seconds_open: Callable[[], float]) -> None:
        """Wait until all have answered that can, or long enough: for keys until the round's deadline."""
        deadline = self._plan.participation.deadline_seconds
        while not self._run.ended:
            awaited = {envoy for envoy in coordinator.awaited if self._rounds.tasks_for(envoy)}
            if not awaited or (coordinator.stage is Stage.UNMASKING and coordinator.is_enough):
                return
            seconds: float | None
            if coordinator.stage is Stage.KEYS:
                seconds = None if deadline is None else deadline - seconds_open()
                if seconds is not None and seconds <= 0:
                    if coordinator.is_enough:
                        return
                    seconds = None  # after the deadline only news can make them enough
            else:
                seconds = self._settings.stage_seconds - (time.monotonic() - self._last_event)
                if seconds <= 0:
                    return
            await self._run.answered.wait(seconds)

    def _take(self, request: SecureRequest) -> None:
        """Take in the message of a request, if it is one of the open attempt and stage, and new."""
        coordinator = self.coordinator
        if request.refusal:
            self._give_up(request)
        elif coordinator is not None and request.content and self._is_open(coordinator, request):
            is_new_key = request.stage == Stage.KEYS and coordinator.keys.get(request.envoy) is not None
            if request.envoy in coordinator.awaited or is_new_key:
                try:
                    self._take_message(coordinator, request)
                except SecureAggregationError as error:
                    # Asked again, it would send the same.
                    self._refuse(request.envoy, str(error))
                self._notify()

    def _take_message(self, coordinator: Coordinator, request: SecureRequest) -> None:
        kinds: dict[int, tuple[Any, Callable[[Any], None]]] = {
            Stage.KEYS: (Keys, coordinator.take_keys),
            Stage.SHARES: (Shares, coordinator.take_shares),
            Stage.AGREEMENT: (Agreement, coordinator.take_agreement),
            Stage.UNMASKING: (Unmasking, coordinator.take_unmasking),
        }
        if request.stage not in kinds:
            return  # updates come by a call of their own
        kind, take = kinds[request.stage]
        try:
            message = kind.model_validate(request.content)
        except ValidationError as error:
            raise SecureAggregationError(f"{coordinator.context}: {describe_faults(error)}") from None
        if message.envoy != request.envoy:
            raise SecureAggregationError(f"{coordinator.context}: '{request.envoy}' sends a message of another envoy")
        take(message)

    def _give_up(self, request: SecureRequest) -> None:
        """Go on without an envoy: in the attempt that it refuses, or, where its update is refused, in the round."""
        number, coordinator = self._rounds.round_number, self.coordinator
        if request.round != number or not self._rounds.tasks_for(request.envoy):
            return
        if request.stage == JOIN:
            self._refuse(request.envoy, request.refusal)
        elif coordinator is not None and request.attempt == coordinator.context.attempt:
            coordinator.give_up(request.envoy)
            self._rounds.note(request.envoy, f"attempt {request.attempt}: {request.refusal}"[:MAX_NOTE])
            self._run.note("secure_refused", round=number, envoy=request.envoy, reason=request.refusal)
        self._notify()

    def _refuse(self, envoy: str, reason: str) -> None:
        """Go on without an envoy in this round."""
        number = self._rounds.round_number
        self._intake.refuse(UpdateEnvelope(experiment=self._plan.name, envoy=envoy, round=number, results={}), reason)
        if self.coordinator is not None:
            self.coordinator.give_up(envoy)

    def _answer_now(self, request: SecureRequest) -> SecureAnswer:
        number, coordinator = self._rounds.round_number, self.coordinator
        is_counted = self._rounds.summed is not None and request.envoy in self._rounds.summed.envoys
        if request.round != number or self._run.ended:
            return SecureAnswer(state="over")
        if self._rounds.summed is not None or not self._rounds.tasks_for(request.envoy):
            return SecureAnswer(state="over", counted=is_counted)
        if coordinator is None or self._run.phase is not Phase.OPEN:
            return SecureAnswer(state="wait")
        attempt = coordinator.context.attempt
        if request.stage == JOIN:
            joins = attempt > request.attempt and coordinator.stage is Stage.KEYS
            return SecureAnswer(state="go" if joins else "wait", attempt=attempt)
        if request.attempt != attempt:
            return SecureAnswer(state="lost")
        return self._after_stage(coordinator, request)

    def _after_stage(self, coordinator: Coordinator, request: SecureRequest) -> SecureAnswer:
        """Return what follows the stage of a request, once it is closed."""
        if coordinator.stage <= request.stage:
            is_in = request.envoy in coordinator.taking_part
            return SecureAnswer(state="wait" if is_in else "lost")
        content = coordinator.result_of(Stage(request.stage), request.envoy)
        if content is None:
            return SecureAnswer(state="lost")
        if request.stage == Stage.UNMASKING:
            return SecureAnswer(state="wait")  # until the sum is counted
        return SecureAnswer(state="go", attempt=request.attempt, content=content)

    def _count(self) -> None:
        """Take the masks away from the sum of numbers, and count it. Raises SecureAggregationError for false shares."""
        coordinator = self._open()
        masks = _negated(coordinator.left_masks(TENSORS))
        totals = self._sum_of_numbers(coordinator)
        results, weight, bounded, clipped = decode_numbers(self.metrics(), [int(total) for total in totals])
        if self._plan.honest_survivors is None:
            self.secret = SecretSum(masks, self._settings, mean_share(self._plan.aggregation, self._settings, weight))
        else:
            noisy = NoisySum.of(self._plan, self._run.folder.model_header, coordinator.context.round)
            self.secret = NoisySecretSum(masks, noisy)
        signed = sorted(coordinator.agreements.values(), key=lambda agreement: agreement.envoy)
        entry = entry_of_sum(
            coordinator.context, coordinator.roster, coordinator.sharers, coordinator.survivors, signed
        )
        # What is said of the round follows from what is recorded.
        self._rounds.count_sum(replay(entry), results, trained=weight > 0)
        self._rounds.note_clipped(clipped)
        self._rounds.note_bounded(bounded)
        self._run.note("secure_sum", round=coordinator.context.round, **entry)

    def _sum_of_numbers(self, coordinator: Coordinator) -> np.ndarray:
        total: np.ndarray | None = None
        for contribution in self._intake.contributions():
            with TensorFile(contribution.path, contribution.header) as update:
                numbers = update.read(NUMBERS_NAME)
            total = numbers if total is None else total + numbers
        if total is None:
            raise SecureAggregationError(f"{coordinator.context}: no update is there")
        add_masks(total, _negated(coordinator.left_masks(NUMBERS)))
        return total

    def close(self) -> None:
        """Forget the attempt of a round that is over."""
        self.coordinator, self.secret = None, None
        self._state.secure_attempt, self._state.secure_survivors = 0, []

    def _note_failure(self, reason: str) -> None:
        logger.warning("%s", reason)
        self._failure = reason
        self._rounds.note("", f"an attempt failed, and nothing was unmasked: {reason}"[:MAX_NOTE])
        self._run.note("secure_failed", round=self._rounds.round_number, reason=reason[:MAX_NOTE])
        self._intake.discard()
        self._notify()

    def _may_be_enough(self) -> bool:
        """Tell whether another attempt could have enough envoys."""
        coordinator = self._open()
        able = [envoy for envoy in self._rounds.participants if self._rounds.tasks_for(envoy)]
        return len(able) >= coordinator.context.threshold

    def _is_open(self, coordinator: Coordinator, request: SecureRequest) -> bool:
        context = coordinator.context
        return (request.round, request.attempt, request.stage) == (context.round, context.attempt, coordinator.stage)

    def _open(self) -> Coordinator:
        if self.coordinator is None:
            raise SecureAggregationError("no attempt of a secure round is open")
        return self.coordinator

    def _notify(self) -> None:
        self._last_event = time.monotonic()
        self._run.answered.notify()


def _hash_of_model(path: Path) -> str:
    """Return the digest of the global model as envoys see it, slice by slice."""
    with TensorFile(path) as model:
        entries = model.header.entries
        described = {name: (entry.dtype.str, entry.shape) for name, entry in entries.items()}

        def chunks(name: str) -> Iterator[memoryview]:
            count = entries[name].count
            for first in range(0, count, SLICE_ITEMS):
                yield bytes_of(model.read(name, first, min(first + SLICE_ITEMS, count)))

        return sha256_of_model(described, chunks)


def _negated(masks: list[Mask]) -> list[Mask]:
    return [Mask(mask.key, -mask.sign) for mask in masks]


def _hash_of(archive: Path) -> str:
    """Return the hash by which sites approve what is in an archive."""
    with open_archive(archive) as zipped:
        return fingerprint({name: zipped.read(name) for name in zipped.namelist() if not name.endswith("/")})
