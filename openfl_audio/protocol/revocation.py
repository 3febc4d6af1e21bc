"""Certificates that end before their time: a list of serials, which director and envoys read again when it changes."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from openfl_audio.errors import CertificateError
from openfl_audio.files import Journal, write_whole
from openfl_audio.protocol.authority import ISSUED
from openfl_audio.protocol.certificates import pair_paths

logger = logging.getLogger(__name__)

REVOKED = "revoked.txt"  # in the folder of the certificates: a line is a serial, a name, stop or keep, and when
KEEP, STOP = "keep", "stop"


class Revoked(NamedTuple):
    """Revoked certificate: its owner, what becomes of the owner's experiments (keep or stop), and the time."""

    name: str
    experiments: str
    time: datetime

    def stops(self, owner: str, submitted: float) -> bool:
        """Tell whether an experiment is to be stopped that `owner` submitted at a time, in seconds of the clock.

        With another certificate the same person may submit again.
        """
        return self.experiments == STOP and self.name == owner and submitted < self.time.timestamp()


class RevocationList:
    """The revoked certificates in a file, which may appear and change at any time.

    A list that has become unreadable, or is gone, is reported, and what it said before holds until it can be read.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the list; None is one that stays empty. Raises CertificateError if it is there and no list."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._revoked: Mapping[int, Revoked] = {}
        if path is not None and path.exists():
            self._revoked, self._stamp = read_list(path), _stamp(path)

    def current(self) -> Mapping[int, Revoked]:
        """Return what is revoked, by serial number."""
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return self._revoked
        self._stamp = stamp
        try:
            self._revoked = read_list(self._path)
        except CertificateError as error:
            logger.error("%s What it said before holds.", error)
        else:
            logger.info("%s was read again: %d certificates are revoked", self._path, len(self._revoked))
        return self._revoked


def read_list(path: Path) -> dict[int, Revoked]:
    """Return the revoked certificates in a file, by serial number. Raises CertificateError with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} cannot be read: {error}.") from error
    revoked = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            serial, name, experiments, time = words
            if experiments not in (KEEP, STOP):
                raise ValueError
            revoked[int(serial, 16)] = Revoked(name, experiments, _moment(time))
        except ValueError:
            raise CertificateError(
                f"{path}, line {number}: {line!r} should be a serial in hexadecimal, a name, {KEEP} or {STOP}, and a "
                "time such as 2026-05-31T17:00:00+00:00."
            ) from None
    return revoked


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment


def revoke(authority: Path, names: Sequence[str], experiments: str = KEEP) -> Path:
    """Put all certificates of `names` that have not ended on the list in the authority's folder; return its file.

    Raises CertificateError for a name without such a certificate.
    """
    if not names:
        raise CertificateError("There is nobody to revoke: give one name or more.")
    path = authority / REVOKED
    revoked = read_list(path) if path.exists() else {}
    issued, now = _issued(authority), datetime.now(timezone.utc)
    for name in names:
        serials = [serial for serial, owner in issued.items() if owner == name]
        if not serials:
            known = ", ".join(sorted(set(issued.values()))) or "nobody"
            raise CertificateError(f"{authority} has no valid certificate of {name!r}; it has some of {known}.")
        revoked |= {serial: Revoked(name, experiments, now) for serial in serials}
    lines = [
        f"{serial:x} {entry.name} {entry.experiments} {entry.time.isoformat()}\n" for serial, entry in revoked.items()
    ]
    write_whole(path, "".join(lines).encode(), durable=True)
    return path


def _issued(authority: Path) -> dict[int, str]:
    """Return the owners of certificates that have not ended, by serial number."""
    now = datetime.now(timezone.utc)
    listed = [record for record in Journal(authority / ISSUED) if datetime.fromisoformat(record["expires"]) > now]
    owners = {int(record["serial"], 16): str(record["name"]) for record in listed}
    # An authority of an earlier version has no list.
    for path in authority.glob("*.crt"):
        certificate, name = x509.load_pem_x509_certificate(path.read_bytes()), path.stem
        if certificate.not_valid_after_utc > now and path != pair_paths(authority, "ca")[0]:
            owners[certificate.serial_number] = name
    return owners


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
