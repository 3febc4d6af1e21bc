"""The director's end of secure aggregation: one attempt of a round, without input and output.

It collects what envoys send for a stage, and closes the stage when there is enough. With at least as many envoys as the
threshold at every stage it learns what has to be taken away from the sum of masked updates; with fewer the attempt
fails, and nothing is unmasked.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from openfl_audio.errors import BelowThresholdError, SecureAggregationError
from openfl_audio.privacy import shamir
from openfl_audio.privacy.graph import Graph
from openfl_audio.privacy.keys import KEY_BYTES, KeyPair, derive
from openfl_audio.privacy.masks import Mask
from openfl_audio.privacy.participant import commitment_to, pair_mask
from openfl_audio.privacy.transcript import (
    Agreement,
    Context,
    Keys,
    Shares,
    Stage,
    Unmasking,
    check_signature,
    roster_digest,
    survivors_statement,
)


class Coordinator:
    """One attempt at the director.

    Attributes:
        context: the attempt.
        stage: the stage that is open.
        keys: the keys by envoy.
        sharers: the envoys whose shares have come, once that stage is closed.
        survivors: the envoys whose masked updates have come, once that stage is closed.
        agreements: signatures of the survivors by envoy.
    """

    def __init__(self, context: Context, asked: Collection[str]) -> None:
        """Begin an attempt in which the envoys `asked` may take part."""
        self.context, self._asked = context, {*asked}
        self.stage = Stage.KEYS
        self.keys: dict[str, Keys] = {}
        self._graph = Graph(context, ())
        self.sharers: list[str] = []
        self.survivors: list[str] = []
        self.agreements: dict[str, Agreement] = {}
        self._shares: dict[str, Shares] = {}
        self._updates: set[str] = set()
        self._unmaskings: dict[str, Unmasking] = {}

    @property
    def awaited(self) -> set[str]:
        """Return the envoys whose messages of the open stage are still to come."""
        return self._expected() - {*self._answered()}

    @property
    def is_enough(self) -> bool:
        """Tell whether the open stage can be closed without those that are awaited."""
        try:
            self._check_enough()
        except BelowThresholdError:
            return False
        return True

    @property
    def taking_part(self) -> set[str]:
        """Return the envoys that have a part in the open stage."""
        return self._expected()

    def give_up(self, envoy: str) -> None:
        """Wait no more for an envoy."""
        self._asked.discard(envoy)

    def result_of(self, stage: Stage, envoy: str) -> dict[str, Any] | None:
        """Return what an envoy is answered after a stage that is closed; None if it has had no part in it."""
        took_part = (self.keys, self._shares, self._updates, self.agreements, self._unmaskings)[stage]
        if envoy not in took_part:
            return None
        results: dict[Stage, Callable[[], Any]] = {
            Stage.KEYS: lambda: {"roster": [keys.model_dump() for keys in self.roster]},
            Stage.SHARES: lambda: {"sealed": self.sealed_for(envoy)},
            Stage.UPDATE: lambda: {"survivors": self.survivors},
            Stage.AGREEMENT: lambda: {"agreements": [each.model_dump() for each in self.agreements.values()]},
            Stage.UNMASKING: dict,
        }
        return results[stage]()

    def take_keys(self, keys: Keys) -> None:
        """Take in an envoy's keys. Raises SecureAggregationError unless its certificate has signed them."""
        # An envoy that was started anew has new ones, which count as long as the stage is open.
        self._check_sender(keys.envoy, Stage.KEYS, self._asked, may_repeat=True)
        check_signature(keys.envoy, keys.certificate, keys.signature, keys.statement(self.context))
        self.keys[keys.envoy] = keys

    def take_shares(self, shares: Shares) -> None:
        """Take in the shares that an envoy has sealed for all that hold some of its secrets."""
        self._check_sender(shares.envoy, Stage.SHARES, self.keys)
        if {*shares.sealed} != {*self._graph.holders(shares.envoy)}:
            raise SecureAggregationError(f"{self.context}: envoy '{shares.envoy}' has shares for other envoys")
        self._shares[shares.envoy] = shares

    def take_update(self, envoy: str) -> None:
        """Note that an envoy's masked update is there, whole."""
        self._check_sender(envoy, Stage.UPDATE, self.sharers)
        self._updates.add(envoy)

    def take_agreement(self, agreement: Agreement) -> None:
        """Take in a signature of the survivors. Raises SecureAggregationError for one of something else."""
        envoy = agreement.envoy
        self._check_sender(envoy, Stage.AGREEMENT, self.survivors)
        statement = survivors_statement(self.roster_sha256, self.sharers, self.survivors)
        check_signature(envoy, self.keys[envoy].certificate, agreement.signature, statement)
        self.agreements[envoy] = agreement

    def take_unmasking(self, unmasking: Unmasking) -> None:
        """Take in an envoy's shares of secrets."""
        self._check_sender(unmasking.envoy, Stage.UNMASKING, self.survivors)
        held = {sharer for sharer in self.sharers if unmasking.envoy in self._graph.holders(sharer)}
        dropped = held - {*self.survivors}
        if {*unmasking.self_masks} != held - dropped or {*unmasking.mask_keys} != dropped:
            raise SecureAggregationError(f"{self.context}: envoy '{unmasking.envoy}' has shares of other secrets")
        self._unmaskings[unmasking.envoy] = unmasking

    def close_stage(self) -> None:
        """Go on to the next stage with the envoys that have answered.

        Raises BelowThresholdError if they are too few; then nothing is unmasked.
        """
        self._check_enough()
        answered = sorted(self._answered())
        if self.stage is Stage.KEYS:
            self._graph = Graph(self.context, self.roster)
        elif self.stage is Stage.SHARES:
            self.sharers = answered
        elif self.stage is Stage.UPDATE:
            self.survivors = answered
        self.stage = Stage(self.stage + 1)

    @property
    def roster(self) -> list[Keys]:
        """Return all keys, by name."""
        return [self.keys[envoy] for envoy in sorted(self.keys)]

    @property
    def roster_sha256(self) -> str:
        """Return the digest of the roster."""
        return roster_digest(self.context, self.roster)

    def sealed_for(self, envoy: str) -> dict[str, str]:
        """Return the shares that were sealed for an envoy, by the name of who sealed some; "" for those of others."""
        return {sender: self._shares[sender].sealed.get(envoy, "") for sender in self.sharers}

    def left_masks(self, purpose: bytes) -> list[Mask]:
        """Return the masks that are left in the sum of the survivors' updates, with the signs that they have there.

        They are the survivors' self-masks, and those that survivors have in common with neighbours whose shares have
        come, and whose updates have not. Raises SecureAggregationError before all stages are closed, and for false
        shares.
        """
        if self.stage is not Stage.DONE:
            raise SecureAggregationError(f"{self.context}: stage {self.stage.name} is open, and nothing is unmasked")
        masks = [Mask(derive(self._secret_of(envoy, "self_masks"), purpose)) for envoy in self.survivors]
        for dropped in sorted({*self.sharers} - {*self.survivors}):
            pair = KeyPair(self._secret_of(dropped, "mask_keys"))
            for envoy in filter(partial(self._graph.have_mask, dropped), self.survivors):
                public = bytes.fromhex(self.keys[envoy].mask_key)
                mask = pair_mask(pair, dropped, public, envoy, self.roster_sha256, purpose)
                masks.append(Mask(mask.key, -mask.sign))  # the other end of the pair has the other sign
        return masks

    def _secret_of(self, envoy: str, kind: str) -> bytes:
        shares = {
            self.context.point(sender): int(getattr(unmasking, kind)[envoy], 16)
            for sender, unmasking in self._unmaskings.items()
            if envoy in getattr(unmasking, kind)
        }
        secret = shamir.join(shares, self._graph.shares)
        fits = secret < 2 ** (8 * KEY_BYTES)
        revealed = secret.to_bytes(KEY_BYTES, "big") if fits else b""
        keys = self.keys[envoy]
        if kind == "self_masks":
            fits = fits and commitment_to(revealed) == keys.commitment
        else:
            fits = fits and KeyPair(revealed).public.hex() == keys.mask_key
        if not fits:
            raise SecureAggregationError(f"{self.context}: shares of envoy '{envoy}' are not those of its secrets")
        return revealed

    def _check_enough(self) -> None:
        """Raise BelowThresholdError unless the open stage can be closed with those that have answered."""
        answered, of = self._answered(), len(self.context.participants)
        if len(answered) < self.context.threshold:
            lost = sorted({*self.context.participants} - {*answered})
            raise BelowThresholdError(
                f"{self.context}: {len(answered)} of {of} envoys are there at stage {self.stage.name}, and secure "
                f"aggregation takes {self.context.threshold}: without {', '.join(lost)}"
            )
        if self.stage is not Stage.KEYS:
            self._graph.check_holders(self.sharers or answered, answered)

    def _check_sender(self, envoy: str, stage: Stage, among: Collection[str], may_repeat: bool = False) -> None:
        """Raise SecureAggregationError unless an envoy may send a message of `stage` now, for the first time."""
        if stage is not self.stage:
            raise SecureAggregationError(
                f"{self.context}: a message of envoy '{envoy}' is of stage {stage.name}, and {self.stage.name} is open"
            )
        if envoy not in among:
            raise SecureAggregationError(f"{self.context}: envoy '{envoy}' has no part in stage {stage.name}")
        if envoy in self._answered() and not may_repeat:
            raise SecureAggregationError(f"{self.context}: envoy '{envoy}' has sent its message of {stage.name} before")

    def _expected(self) -> set[str]:
        of_stage: Sequence[Collection[str]] = (
            self._asked, self.keys, self.sharers, self.survivors, self.survivors, ()
        )  # fmt: skip
        return self._asked & {*of_stage[self.stage]}

    def _answered(self) -> Collection[str]:
        of_stage: Sequence[Collection[str]] = (
            self.keys, self._shares, self._updates, self.agreements, self._unmaskings, ()
        )  # fmt: skip
        return of_stage[self.stage]
