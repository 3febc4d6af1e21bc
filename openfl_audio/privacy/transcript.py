"""Messages of secure aggregation, and what binds them to one attempt of one round of one experiment.

    stage       an envoy sends                                      the director answers, when enough have sent theirs
    KEYS        two public keys, and a commitment, signed           all keys: the roster
    SHARES      shares of its two secrets, sealed for each other    the shares that were sealed for the envoy
    UPDATE      its masked update                                   the survivors, whose updates have come
    AGREEMENT   its signature of the survivors                      the signatures
    UNMASKING   one share for each envoy of the roster              (the sum is known)

Keys of certificates sign: ECDSA with SHA-256. Every signature is over the digest of the `Context`, so that none of
another experiment, plan, round or attempt can be used again.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Protocol

from pydantic import Field

from openfl_audio.errors import CertificateError, SecureAggregationError
from openfl_audio.privacy.keys import KEY_BYTES
from openfl_audio.privacy.shamir import SHARE_BYTES
from openfl_audio.protocol.certificates import ENVOY, Credentials, check_issued, owner_of, role_of
from openfl_audio.protocol.messages import MAX_CERTIFICATE_CHARACTERS, Message
from openfl_audio.protocol.secure_aggregation import SecureAggregation, threshold
from openfl_audio.protocol.signatures import has_signed, sign

Key = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]
Share = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * SHARE_BYTES}}}$")]
Sealed = Annotated[str, Field(pattern="^([0-9a-f]{2}){1,200}$")]
Signature = Annotated[str, Field(max_length=200)]


class Stage(IntEnum):
    """The stages of an attempt, in their order."""

    KEYS = 0
    SHARES = 1
    UPDATE = 2
    AGREEMENT = 3
    UNMASKING = 4
    DONE = 5


class Context(Message):
    """The attempt that messages belong to. Each side makes its own, from what it knows itself.

    Attributes:
        experiment: the name of the experiment.
        plan_sha256: the hash of the submission that sites approve.
        round: the number of the round.
        model_sha256: the digest of the global model that the round began with. A director that sent a model of its own
            to all but one envoy could make the updates of those known, and so the one that is left (Pasquini et al.
            2022, "Eluding Secure Aggregation in Federated Learning via Model Inconsistency", ACM CCS).
        attempt: the number of the attempt; each has keys of its own.
        participants: the envoys that the plan lets train in the round, sorted.
        settings: how updates become integers.
    """

    experiment: str
    plan_sha256: str
    round: int
    model_sha256: str
    attempt: int
    participants: list[str]
    settings: SecureAggregation

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of all that the attempt is bound to."""
        return digest_of("context", self.model_dump(mode="json"))

    @property
    def threshold(self) -> int:
        """Return how many envoys there must be at every stage."""
        return threshold(len(self.participants))

    def point(self, envoy: str) -> int:
        """Return the point at which an envoy's shares are."""
        return self.participants.index(envoy) + 1

    def __str__(self) -> str:
        return f"experiment '{self.experiment}', round {self.round}, attempt {self.attempt}"


class Keys(Message):
    """The public keys of an envoy for one attempt.

    Attributes:
        encryption_key: the key for sealing shares, X25519.
        mask_key: the key from which masks of pairs follow, X25519.
        commitment: the SHA-256 of the secret from which the envoy's own mask follows.
        metrics: the names of the metrics that it reports, by task.
        approves: whether its site approves code by hash or signature.
        certificate: the envoy's certificate (PEM).
        signature: the signature of all that with the certificate's key, base64.
    """

    envoy: str
    encryption_key: Key
    mask_key: Key
    commitment: Key
    metrics: dict[str, list[Annotated[str, Field(max_length=200)]]] = Field(max_length=100)
    approves: bool = False
    certificate: str = Field(default="", max_length=MAX_CERTIFICATE_CHARACTERS)
    signature: Signature = ""

    def statement(self, context: Context) -> bytes:
        """Return the bytes that the envoy signs."""
        content = self.model_dump(exclude={"certificate", "signature"})
        return f"openfl-audio secure keys\n{context.digest}\n{digest_of('keys', content)}\n".encode()


class Shares(Message):
    """The shares of an envoy's secrets, sealed for each envoy of the roster, by its name."""

    envoy: str
    sealed: dict[str, Sealed]


class Agreement(Message):
    """An envoy's signature of the survivors, base64."""

    envoy: str
    signature: Signature


class Unmasking(Message):
    """An envoy's shares, of one secret of each envoy that sealed shares for it.

    Attributes:
        self_masks: of the self-masks of survivors, by name.
        mask_keys: of the mask keys of those whose updates have not come, by name.
    """

    envoy: str
    self_masks: dict[str, Share]
    mask_keys: dict[str, Share]


class Identity(Protocol):
    """The signatures of one envoy, and its judgement of those of others."""

    certificate: str

    def sign(self, statement: bytes) -> str:
        """Return the signature of a statement, base64."""

    def check(self, envoy: str, certificate: str, signature: str, statement: bytes) -> None:
        """Raise SecureAggregationError unless the certificate is that of `envoy`, and holds, and its key has signed."""


class CertificateIdentity:
    """The identity that a certificate of the federation gives."""

    def __init__(self, own: Credentials, revoked: Collection[int] = ()) -> None:
        """Sign with the key of `own`, and take certificates of its authorities that are not `revoked`, by serial."""
        self._own, self._revoked = own, revoked
        self.certificate = own.certificate.decode()

    def sign(self, statement: bytes) -> str:
        """Return the signature of a statement, base64. Raises CertificateError for a key of another kind."""
        return sign(self._own, statement)

    def check(self, envoy: str, certificate: str, signature: str, statement: bytes) -> None:
        """Raise SecureAggregationError unless the certificate is that of `envoy`, and holds, and its key has signed."""
        pem = certificate.encode()
        try:
            if role_of(pem) != (envoy, ENVOY):
                raise SecureAggregationError(f"keys of envoy '{envoy}' are signed by {' '.join(role_of(pem)[::-1])}")
            check_issued(pem, self._own.root, f"envoy '{envoy}'")
        except CertificateError as error:
            raise SecureAggregationError(str(error)) from None
        if owner_of(pem).serial in self._revoked:
            raise SecureAggregationError(f"the certificate of envoy '{envoy}' is revoked")
        check_signature(envoy, certificate, signature, statement)


def check_signature(envoy: str, certificate: str, signature: str, statement: bytes) -> None:
    """Raise SecureAggregationError unless the key of `certificate` (PEM) has signed `statement`."""
    if not has_signed(certificate, signature, statement):
        raise SecureAggregationError(
            f"the signature of envoy '{envoy}' is none of this experiment, plan, round, model, attempt and participants"
        )


def roster_digest(context: Context, roster: Iterable[Keys]) -> str:
    """Return the SHA-256 of the context and all keys: who saw other keys has another one."""
    keys = sorted((keys.model_dump() for keys in roster), key=lambda keys: str(keys["envoy"]))
    return digest_of("roster", {"context": context.digest, "keys": keys})


def survivors_statement(roster_sha256: str, sharers: Iterable[str], survivors: Iterable[str]) -> bytes:
    """Return the bytes that every survivor signs: whose shares there are, and whose updates are summed."""
    content = {"roster": roster_sha256, "sharers": sorted(sharers), "survivors": sorted(survivors)}
    return f"openfl-audio secure survivors\n{digest_of('survivors', content)}\n".encode()


def digest_of(kind: str, content: Mapping[str, object]) -> str:
    """Return the SHA-256 of content as canonical JSON, in hexadecimal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"openfl-audio {kind}\n{text}".encode()).hexdigest()
