"""Heads of records, signed and exchanged: each side keeps the other's, so that neither can change what is behind them.

A head is signed with the key of the certificate that its owner shows in TLS: ECDSA with SHA-256 over `signed_text`.
Without TLS heads are exchanged unsigned, and show only what nobody has tampered with.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from openfl_audio.errors import CertificateError, RecordError
from openfl_audio.protocol.certificates import Credentials, owner_of
from openfl_audio.protocol.messages import SignedHead
from openfl_audio.protocol.record import Head, Record
from openfl_audio.protocol.signatures import has_signed, sign


def head_of(signed: SignedHead) -> Head:
    """Return the head itself."""
    return Head(signed.number, signed.sha256)


def signed_text(owner: str, head: Head) -> bytes:
    """Return the bytes that the owner of a record, such as "envoy 'site-a'", signs for a head of it."""
    return f"openfl-audio record\n{owner}\n{head.number}\n{head.sha256}\n".encode()


def sign_head(owner: str, head: Head, own: Credentials | None) -> SignedHead:
    """Return a head with the signature of its owner; unsigned without credentials."""
    if own is None:
        return SignedHead(number=head.number, sha256=head.sha256)
    signature = sign(own, signed_text(owner, head))
    return SignedHead(number=head.number, sha256=head.sha256, signature=signature, certificate=own.certificate.decode())


def check_signature(owner: str, head: Head, signature: str, certificate: str) -> None:
    """Raise RecordError unless `certificate` (PEM) is that of `owner`, and its key has made the signature."""
    try:
        signer = owner_of(certificate.encode()).name
    except CertificateError:
        signer = ""
    if signer and signer != owner:
        raise RecordError(f"a head of the record of {owner} is signed by {signer}")
    if not signer or not has_signed(certificate, signature, signed_text(owner, head)):
        raise RecordError(f"the signature of head {head.number} of the record of {owner} does not hold")


def check_issuer(owner: str, certificate: str, root: bytes) -> None:
    """Raise RecordError unless an authority in `root` (PEM) has signed the certificate of `owner`.

    It may have ended meanwhile: a record is older than today.
    """
    found = x509.load_pem_x509_certificate(certificate.encode())
    for authority in x509.load_pem_x509_certificates(root):
        try:
            found.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return
    raise RecordError(f"the certificate of {owner} is not signed by this authority")


@dataclass
class _Other:
    """The record of another side: its newest head, and what waits to be kept of it."""

    newest: Head
    kept_at: float = float("-inf")
    waiting: dict[str, Any] | None = None  # fields of the entry
    went_back: dict[str, int] | None = None


class HeadExchange:
    """Exchange of heads with other sides, whose heads go into the own record."""

    def __init__(self, record: Record, pause_seconds: float = 0.0) -> None:
        """Keep at most one head of each other side in `pause_seconds`: the newest waits for `keep_waiting`."""
        self.record = record
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._others: dict[str, _Other] = {}
        self._serials: set[int] = set()

    def own(self, credentials: Credentials | None) -> SignedHead:
        """Return the newest head of the own record that is on the disk, signed."""
        return sign_head(self.record.owner, self.record.head, credentials)

    def take(self, owner: str, signed: SignedHead, certificate: str, root: bytes | None) -> None:
        """Keep a head of the record of `owner` in the own record; `certificate` (PEM) is the one of TLS, "" without.

        Raises RecordError if its signature does not hold, and with `root` also if there is none or no authority there
        has signed the certificate.
        """
        if certificate or root is not None:
            check_signature(owner, head_of(signed), signed.signature, certificate)
            if root is not None:
                check_issuer(owner, certificate, root)
        head = head_of(signed)
        with self._lock:
            other = self._others.get(owner)
            if other and other.newest == head:
                return
            other = self._others.setdefault(owner, _Other(head))
            serial = owner_of(certificate.encode()).serial if certificate else None
            if serial is not None and serial not in self._serials:
                self._serials.add(serial)
                self.record.note("key", of=owner, serial=f"{serial:x}", certificate=certificate)
            if head.number < other.newest.number and not other.went_back:
                other.went_back = {"had": other.newest.number, "has": head.number}
            signature = {"serial": f"{serial:x}", "signature": signed.signature} if serial is not None else {}
            other.newest, other.waiting = head, {"entry": head.number, "sha256": head.sha256, **signature}
            self._keep(owner, other)

    def keep_waiting(self, at_once: bool = False) -> None:
        """Keep the heads whose pause is over, or `at_once` all that wait."""
        with self._lock:
            for owner, other in self._others.items():
                self._keep(owner, other, at_once)

    def _keep(self, owner: str, other: _Other, at_once: bool = False) -> None:
        now = time.monotonic()
        if other.waiting is None or not (at_once or now >= other.kept_at + self._pause_seconds):
            return
        if other.went_back:
            self.record.note("head_went_back", of=owner, **other.went_back)
        self.record.note("head", of=owner, **other.waiting)
        other.kept_at, other.waiting, other.went_back = now, None, None
