"""Attempts of a secure round among envoys with certificates, in which any message can be lost or changed."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy.coordinator import Coordinator
from openfl_audio.privacy.masks import Mask, add_masks
from openfl_audio.privacy.participant import NUMBERS, TENSORS, Participant
from openfl_audio.privacy.transcript import CertificateIdentity, Context, Keys, Stage, Unmasking
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.secure_aggregation import SecureAggregation

NAMES = [f"site-{letter}" for letter in "abcdefgh"]
# So many that each shares secrets with some others only.
MANY = [f"site-{number:02}" for number in range(60)]
ITEMS = 1000


def make_identities(
    folder: Path, names: Sequence[str] = NAMES, kind: type[CertificateIdentity] = CertificateIdentity
) -> dict[str, CertificateIdentity]:
    """Return identities of this kind that one authority has certified, by name."""
    write_certificates(folder, director_hosts=["localhost"], envoys=names)
    return {name: kind(load_credentials(folder, name)) for name in names}


class RememberingIdentity(CertificateIdentity):
    """Checks once for all envoys of a test what each of them has to check, as that is most of its time."""

    _held: ClassVar[set[tuple[str, str, str, bytes]]] = set()

    def check(self, envoy: str, certificate: str, signature: str, statement: bytes) -> None:
        if (envoy, certificate, signature, statement) not in self._held:
            super().check(envoy, certificate, signature, statement)
            self._held.add((envoy, certificate, signature, statement))


def context_of(names: Sequence[str], **changes: object) -> Context:
    """Return the first attempt of round 4, or another one with `changes`."""
    about = {
        "experiment": "speech",
        "plan_sha256": "ab" * 32,
        "round": 4,
        "model_sha256": "ef" * 32,
        "attempt": 1,
        "participants": [*names],
    }
    return Context.model_validate(about | {"settings": SecureAggregation()} | changes)


class Ledger:
    """Note of the survivors that were unmasked: another set for one round is refused."""

    def __init__(self) -> None:
        self.unmasked: dict[tuple[str, int], list[str]] = {}

    def judge(self, context: Context, survivors: Sequence[str]) -> None:
        if self.unmasked.get((context.plan_sha256, context.round), [*survivors]) != [*survivors]:
            raise SecureAggregationError("another set of survivors")

    def commit(self, context: Context, survivors: Sequence[str]) -> None:
        self.judge(context, survivors)
        self.unmasked[context.plan_sha256, context.round] = [*survivors]


class Attempt:
    """All ends of one attempt, in one process.

    Attributes:
        participants: the envoys' ends by name.
        coordinator: the director's end.
        updates: the words that each envoy sends in secret.
        masked: the words that the director gets.
        unmaskings: what envoys have unmasked.
    """

    def __init__(
        self,
        identities: dict[str, CertificateIdentity],
        names: Sequence[str],
        ledgers: dict[str, Ledger] | None = None,
        **changes: object,
    ) -> None:
        self.context = context_of(names, **changes)
        self.ledgers = ledgers if ledgers is not None else {name: Ledger() for name in names}
        metrics = {"validate": ["accuracy"]}
        self.participants = {
            name: Participant(self.context, name, identities[name], metrics, approves=True) for name in names
        }
        self.coordinator = Coordinator(self.context, names)
        generator = np.random.default_rng(7)
        self.updates = {name: generator.integers(0, 2**20, ITEMS).astype(np.uint32) for name in names}
        self.masks: dict[str, dict[bytes, list[Mask]]] = {}
        self.masked: dict[str, np.ndarray] = {}
        self.unmaskings: dict[str, Unmasking] = {}

    def run(self, lost: dict[Stage, Collection[str]] | None = None) -> np.ndarray:
        """Run all stages and return the sum; `lost` envoys send nothing from a stage on."""
        gone: set[str] = set()
        for stage in list(Stage)[:-1]:
            gone |= {*(lost or {}).get(stage, ())}
            self.run_stage(stage, [name for name in self.participants if name not in gone])
        return self.sum()

    def run_stage(self, stage: Stage, names: Collection[str]) -> None:
        """Let those of `names` that have a part in the stage send their messages, and close it."""
        for name in names:
            if name in self.coordinator.awaited:
                STEPS[stage](self, name)
        self.coordinator.close_stage()

    def run_until(self, stage: Stage, names: Collection[str] | None = None) -> None:
        """Run the stages before `stage`."""
        for before in list(Stage)[:stage]:
            self.run_stage(before, self.participants if names is None else names)

    def sum(self) -> np.ndarray:
        """Return the sum of the survivors' updates, as the director computes it."""
        total = np.zeros(ITEMS, np.uint32)
        for name in self.coordinator.survivors:
            total += self.masked[name]
        add_masks(total, [Mask(mask.key, -mask.sign) for mask in self.coordinator.left_masks(TENSORS)])
        return total

    def roster(self) -> list[Keys]:
        """Return the roster, which a test may change."""
        return self.coordinator.roster

    def _keys(self, name: str) -> None:
        self.coordinator.take_keys(self.participants[name].keys())

    def _share(self, name: str) -> None:
        self.coordinator.take_shares(self.participants[name].share(self.roster()))

    def _update(self, name: str) -> None:
        self.masks[name] = self.participants[name].masks(self.coordinator.sealed_for(name))
        self.masked[name] = self.updates[name].copy()
        add_masks(self.masked[name], self.masks[name][TENSORS])
        self.coordinator.take_update(name)

    def _agree(self, name: str) -> None:
        ledger = self.ledgers[name]
        self.coordinator.take_agreement(self.participants[name].agree(self.coordinator.survivors, ledger.judge))

    def _unmask(self, name: str) -> None:
        signed = [*self.coordinator.agreements.values()]
        self.unmaskings[name] = self.participants[name].unmask(signed, self.ledgers[name].commit)
        self.coordinator.take_unmasking(self.unmaskings[name])


STEPS: dict[Stage, Callable[[Attempt, str], None]] = {
    Stage.KEYS: Attempt._keys,
    Stage.SHARES: Attempt._share,
    Stage.UPDATE: Attempt._update,
    Stage.AGREEMENT: Attempt._agree,
    Stage.UNMASKING: Attempt._unmask,
}
__all__ = ["MANY", "NUMBERS", "TENSORS", "Attempt", "Ledger", "context_of", "make_identities"]
