"""An envoy's end of secure aggregation: one attempt of a round, without input and output.

Each step checks what the director says before it answers, and raises SecureAggregationError, in one sentence, for what
breaks the protocol's rules. Then the attempt is over for this envoy: it answers nothing more, and no secret leaves.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence

from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy import shamir
from openfl_audio.privacy.graph import Graph
from openfl_audio.privacy.keys import KEY_BYTES, KeyPair, derive, seal, unseal
from openfl_audio.privacy.masks import Mask
from openfl_audio.privacy.transcript import (
    Agreement,
    Context,
    Identity,
    Keys,
    Shares,
    Stage,
    Unmasking,
    roster_digest,
    survivors_statement,
)

# Tensors and other numbers of an update are masked by streams of their own.
TENSORS, NUMBERS = b"openfl-audio mask of tensors", b"openfl-audio mask of numbers"
# Given the context and the survivors; raises SecureAggregationError if they must not be unmasked.
Judge = Callable[[Context, Sequence[str]], None]


class Participant:
    """One envoy in one attempt. Its methods are called once each, in the order of the stages.

    Attributes:
        context: the attempt, as this envoy knows it.
        stage: the stage whose message the envoy has sent last, None before the first.
        roster: the keys of all envoys that began the attempt, by name.
        survivors: the envoys whose updates are summed.
    """

    def __init__(
        self, context: Context, envoy: str, identity: Identity, metrics: Mapping[str, Collection[str]], approves: bool
    ) -> None:
        """Begin the attempt as `envoy`, which reports `metrics` by task; `approves` tells whether its site does.

        Raises SecureAggregationError for an envoy that has no part in the round.
        """
        if envoy not in context.participants:
            raise SecureAggregationError(f"{context}: envoy '{envoy}' has no part in it, by its plan")
        self.context, self.envoy, self._identity = context, envoy, identity
        self._about = {task: sorted(names) for task, names in metrics.items()}, approves
        self._encryption, self._mask, self._self_mask = KeyPair(), KeyPair(), os.urandom(KEY_BYTES)
        self.stage: Stage | None = None
        self.roster: dict[str, Keys] = {}
        self.survivors: list[str] = []
        self._graph = Graph(context, ())
        self._sharers: list[str] = []
        self._received: dict[str, tuple[int, int]] = {}
        self._roster_sha256 = ""

    def keys(self) -> Keys:
        """Return this envoy's public keys, signed."""
        self._enter(Stage.KEYS)
        metrics, approves = self._about
        keys = Keys(
            envoy=self.envoy,
            encryption_key=self._encryption.public.hex(),
            mask_key=self._mask.public.hex(),
            commitment=commitment_to(self._self_mask),
            metrics=metrics,
            approves=approves,
        )
        signature = self._identity.sign(keys.statement(self.context))
        self.roster[self.envoy] = keys.model_copy(
            update={"certificate": self._identity.certificate, "signature": signature}
        )
        return self.roster[self.envoy]

    def share(self, roster: Sequence[Keys]) -> Shares:
        """Return shares of this envoy's secrets, sealed for each holder of the `roster`, itself among them."""
        self._enter(Stage.SHARES)
        self._check_roster(roster)
        self.roster = {keys.envoy: keys for keys in roster}
        self._roster_sha256 = roster_digest(self.context, roster)
        self._graph = Graph(self.context, roster)
        self._graph.check_holders([self.envoy], self.roster)
        holders = self._graph.holders(self.envoy)
        points = {envoy: self.context.point(envoy) for envoy in self.roster if envoy in holders}
        of_mask_key = self._split(self._mask.private, points.values())
        of_self_mask = self._split(self._self_mask, points.values())
        sealed = {}
        for envoy, point in points.items():
            text = b"".join(each[point].to_bytes(shamir.SHARE_BYTES, "big") for each in (of_mask_key, of_self_mask))
            key = self._seal_key(self.envoy, envoy)
            sealed[envoy] = seal(key, text, self._about_shares(self.envoy, envoy)).hex()
        return Shares(envoy=self.envoy, sealed=sealed)

    def masks(self, sealed: Mapping[str, str]) -> dict[bytes, list[Mask]]:
        """Return the masks that hide this envoy's update, by TENSORS and NUMBERS.

        `sealed` has the shares for this envoy by the name of who sealed shares, "" where they are for others. All these
        take part in the sum: each pair of neighbours has a mask that one adds and the other takes away.
        """
        self._enter(Stage.UPDATE)
        self._check_names(sealed, self.roster, "shares")
        self._sharers = list(sealed)
        for envoy, text in sealed.items():
            if bool(text) != (self.envoy in self._graph.holders(envoy)):
                raise SecureAggregationError(
                    f"{self.context}: the director takes envoy '{self.envoy}' for {'a' if text else 'no'} neighbour of "
                    f"envoy '{envoy}', and by the keys of '{envoy}' it is {'none' if text else 'one'}"
                )
            if not text:
                continue
            key = self._seal_key(envoy, self.envoy)
            opened = unseal(key, bytes.fromhex(text), self._about_shares(envoy, self.envoy))
            if len(opened) != 2 * shamir.SHARE_BYTES:
                raise SecureAggregationError(f"{self.context}: envoy '{envoy}' sent no shares of its secrets")
            share_of_key, share_of_mask = opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :]
            self._received[envoy] = int.from_bytes(share_of_key, "big"), int.from_bytes(share_of_mask, "big")
        return {purpose: self._masks_for(purpose) for purpose in (TENSORS, NUMBERS)}

    def agree(self, survivors: Sequence[str], judge: Judge) -> Agreement:
        """Return this envoy's signature of the survivors, whose updates the director says it has.

        `judge` raises SecureAggregationError if a sum of them must not be known.
        """
        self._enter(Stage.AGREEMENT)
        self._check_names(survivors, self._sharers, "updates")
        self._graph.check_holders(self._sharers, survivors)
        judge(self.context, sorted(survivors))
        self.survivors = sorted(survivors)
        return Agreement(envoy=self.envoy, signature=self._identity.sign(self._survivors_statement()))

    def unmask(self, agreements: Sequence[Agreement], commit: Judge) -> Unmasking:
        """Return a share of one secret of each envoy that gave some: of a survivor's self-mask, or another's mask key.

        Enough survivors must have signed the same survivors as this envoy. `commit` writes down that they are about to
        be unmasked, before any share leaves, and raises SecureAggregationError if they must not be.
        """
        self._enter(Stage.UNMASKING)
        names = [agreement.envoy for agreement in agreements]
        self._check_names(names, self.survivors, "signatures of the survivors")
        for agreement in agreements:
            self._identity.check(
                agreement.envoy,
                self.roster[agreement.envoy].certificate,
                agreement.signature,
                self._survivors_statement(),
            )
        commit(self.context, self.survivors)
        self_masks = {envoy: _hex(self._received[envoy][1]) for envoy in self.survivors if envoy in self._received}
        mask_keys = {envoy: _hex(shares[0]) for envoy, shares in self._received.items() if envoy not in self_masks}
        return Unmasking(envoy=self.envoy, self_masks=self_masks, mask_keys=mask_keys)

    def _enter(self, stage: Stage) -> None:
        """Go on to a stage. Raises SecureAggregationError if it is not the next one: none is done twice."""
        expected = Stage.KEYS if self.stage is None else Stage(self.stage + 1)
        if stage is not expected:
            raise SecureAggregationError(f"{self.context}: stage {stage.name} comes when {expected.name} is next")
        # Also where the stage fails: the attempt is over then.
        self.stage = stage

    def _check_roster(self, roster: Sequence[Keys]) -> None:
        names = [keys.envoy for keys in roster]
        self._check_names(names, self.context.participants, "keys")
        if self.roster[self.envoy] not in roster:
            raise SecureAggregationError(f"{self.context}: the keys of envoy '{self.envoy}' itself were swapped")
        for kind in ("encryption_key", "mask_key", "commitment"):
            if len({getattr(keys, kind) for keys in roster}) < len(roster):
                raise SecureAggregationError(f"{self.context}: two envoys have the same {kind}")
        for keys in roster:
            self._identity.check(keys.envoy, keys.certificate, keys.signature, keys.statement(self.context))

    def _check_names(self, names: Collection[str], among: Collection[str], kind: str) -> None:
        """Raise SecureAggregationError unless `names` are enough of those that may be there, this one with them."""
        strangers = sorted({*names} - {*among})
        if strangers or len({*names}) < len(names):
            raise SecureAggregationError(f"{self.context}: {kind} of {strangers[:3] or 'one envoy twice'}")
        if self.envoy not in names:
            raise SecureAggregationError(f"{self.context}: the director has given up envoy '{self.envoy}': no {kind}")
        if len(names) < self.context.threshold:
            raise SecureAggregationError(
                f"{self.context}: {kind} of {len(names)} envoys, and of {len(self.context.participants)} there must be "
                f"{self.context.threshold}"
            )

    def _split(self, secret: bytes, points: Collection[int]) -> dict[int, int]:
        return shamir.split(int.from_bytes(secret, "big"), self._graph.shares, points)

    def _about_shares(self, sender: str, receiver: str) -> bytes:
        return f"openfl-audio shares\n{self._roster_sha256}\n{sender}\n{receiver}\n".encode()

    def _seal_key(self, sender: str, receiver: str) -> bytes:
        other = receiver if sender == self.envoy else sender
        public = bytes.fromhex(self.roster[other].encryption_key)
        return self._encryption.agree(public, self._about_shares(sender, receiver))

    def _survivors_statement(self) -> bytes:
        return survivors_statement(self._roster_sha256, self._sharers, self.survivors)

    def _masks_for(self, purpose: bytes) -> list[Mask]:
        masks = [Mask(derive(self._self_mask, purpose))]
        for envoy in self._sharers:
            if self._graph.have_mask(self.envoy, envoy):
                public = bytes.fromhex(self.roster[envoy].mask_key)
                masks.append(pair_mask(self._mask, self.envoy, public, envoy, self._roster_sha256, purpose))
        return masks


def pair_mask(pair: KeyPair, envoy: str, other_key: bytes, other: str, roster_sha256: str, purpose: bytes) -> Mask:
    """Return the mask that `envoy` with its key `pair` has in common with `other`: one of them adds it."""
    key = pair.agree(other_key, purpose + f"\n{roster_sha256}\n".encode())
    return Mask(key, 1 if envoy < other else -1)


def commitment_to(self_mask: bytes) -> str:
    """Return the SHA-256 by which a self-mask is known before it is revealed."""
    return hashlib.sha256(b"openfl-audio self-mask\n" + self_mask).hexdigest()


def _hex(share: int) -> str:
    return share.to_bytes(shamir.SHARE_BYTES, "big").hex()
