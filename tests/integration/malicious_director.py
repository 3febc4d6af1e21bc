"""A director that breaks the rules of secure aggregation, in the way that an experiment has as its name."""

import sys
from collections.abc import Callable
from typing import Any

from openfl_audio.cli.main import main
from openfl_audio.director import secure_rounds
from openfl_audio.director.secure_rounds import SecureRounds
from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy.coordinator import Coordinator
from openfl_audio.privacy.keys import KeyPair
from openfl_audio.privacy.transcript import Agreement, Stage

Told = dict[str, Any]
LOST = "d"
seen: dict[str, Told] = {}


def swap_keys(coordinator: Coordinator, stage: Stage, envoy: str, told: Told) -> Told:
    """Give keys of the director as those of the other envoys."""
    if stage is not Stage.KEYS:
        return told
    return {
        "roster": [
            keys if keys["envoy"] == envoy else keys | {"mask_key": KeyPair().public.hex()} for keys in told["roster"]
        ]
    }


def replay_keys(coordinator: Coordinator, stage: Stage, envoy: str, told: Told) -> Told:
    """Make the first attempt fail, and give its keys in the second one."""
    if stage is not Stage.KEYS:
        return told
    if coordinator.context.attempt == 1:
        seen.update({keys["envoy"]: keys for keys in told["roster"]})
        return swap_keys(coordinator, stage, envoy, told)
    return {"roster": [keys if keys["envoy"] == envoy else seen[keys["envoy"]] for keys in told["roster"]]}


def split_survivors(coordinator: Coordinator, stage: Stage, envoy: str, told: Told) -> Told:
    """Tell two envoys that one is lost, and the others that it is not."""
    names = [name for name in coordinator.survivors if name != LOST or envoy not in "ab"]
    if stage is Stage.UPDATE:
        return {"survivors": names}
    if stage is Stage.AGREEMENT:
        return {"agreements": [each for each in told["agreements"] if each["envoy"] in names]}
    return told


def leave_alone(coordinator: Coordinator, stage: Stage, envoy: str, told: Told) -> Told:
    """Tell each envoy that all others are lost."""
    return {"survivors": [envoy]} if stage is Stage.UPDATE else told


TRICKS: dict[str, Callable[[Coordinator, Stage, str, Told], Told]] = {
    "swapped-keys": swap_keys,
    "replayed-keys": replay_keys,
    "split-survivors": split_survivors,
    "left-alone": leave_alone,
}
ONE_FEWER = "one-fewer"


def break_rules() -> None:
    """Make the director of this process malicious."""
    result_of, take_agreement = Coordinator.result_of, Coordinator.take_agreement
    begin, count = SecureRounds._begin, SecureRounds._count

    def false_result(self: Coordinator, stage: Stage, envoy: str) -> Told | None:
        told, trick = result_of(self, stage, envoy), TRICKS.get(self.context.experiment)
        return trick(self, stage, envoy, told) if trick and told is not None else told

    def take_any_agreement(self: Coordinator, agreement: Agreement) -> None:
        if self.context.experiment in TRICKS:
            self.agreements[agreement.envoy] = agreement
        else:
            take_agreement(self, agreement)

    def count_and_ask_again(self: SecureRounds) -> None:
        if self._plan.name == ONE_FEWER:
            self._state.secure_survivors = []
            raise SecureAggregationError("the same round is asked again")
        count(self)

    async def begin_without_one(self: SecureRounds) -> None:
        await begin(self)
        if self._plan.name == ONE_FEWER and self._open().context.attempt > 1:
            self._open().give_up(LOST)

    Coordinator.result_of, Coordinator.take_agreement = false_result, take_any_agreement  # type: ignore[method-assign]
    SecureRounds._begin, SecureRounds._count = begin_without_one, count_and_ask_again  # type: ignore[method-assign]
    secure_rounds.MAX_ATTEMPTS = 2


if __name__ == "__main__":
    break_rules()
    sys.exit(main())
