"""The certificates of a federation, as director, envoys and notebooks read them; `authority` makes them.

Imports no more than the standard library and `cryptography`: the envoy loads this on small devices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from openfl_audio.address import check_host
from openfl_audio.errors import CertificateError

DIRECTOR = "director"
ENVOY = "envoy"
USER = "user"
OPERATOR = "operator"
MONITOR = "monitor"
ROLES = (DIRECTOR, ENVOY, USER, OPERATOR, MONITOR)

AUTHORITY = "ca"
WARNING_DAYS = 30

# A name becomes a file name and a common name (64 characters at most in X.509), hence neither "../x" nor "-x".
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOW = "openfl-audio certificates make or request writes it, or --disable-tls runs without."
REQUEST = ".csr"


@dataclass(frozen=True)
class Credentials:
    """Certificate, key and authorities of one side of a TLS connection, as PEM, and its name."""

    root: bytes
    certificate: bytes
    private_key: bytes = field(repr=False)
    name: str
    role: str


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a PEM file. Raises CertificateError."""
    private_key = _private_key(read_pem(path), path)
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not an elliptic-curve key, as this project makes them.")
    return private_key


def load_credentials(folder: Path | None, name: str) -> Credentials:
    """Read `ca.crt`, `NAME.crt` and `NAME.key` from `folder`, checked as `read_credentials` does.

    Without a `ca.crt` the authority is the one in `NAME.crt`, as an answer to a request has it. Raises
    CertificateError, also without a folder: only TLS needs one.
    """
    if folder is None:
        raise CertificateError("TLS needs certificates: set `certificates` to their folder, or use --disable-tls.")
    if not NAME.fullmatch(name):
        raise CertificateError(bad_name(name))
    if not folder.is_dir():
        raise CertificateError(f"The certificate folder {folder} does not exist: {_HOW}")
    root_path, (certificate_path, key_path) = folder / f"{AUTHORITY}.crt", pair_paths(folder, name)
    if (
        not root_path.exists()
        and certificate_path.exists()
        and _authorities(read_pem(certificate_path), certificate_path)
    ):
        root_path = certificate_path
    return read_credentials(root_path, certificate_path, key_path, name)


def read_credentials(root_path: Path, certificate_path: Path, key_path: Path, name: str) -> Credentials:
    """Read three PEM files, and check that they are those of `name` and that a handshake would not fail on them.

    The first file may have several authorities: while one takes over from another, both are good.
    """
    certificate_pem, key_pem = read_pem(certificate_path), read_pem(key_path)
    authorities = _authorities(read_pem(root_path), root_path)
    certificate = parse_certificate(certificate_pem, certificate_path)
    private_key = _private_key(key_pem, key_path)
    if not authorities:
        raise CertificateError(f"{root_path} has no certificate of an authority.")
    issuers = [root for root in authorities if _has_signed(root, certificate)]
    if not issuers:
        raise CertificateError(f"{certificate_path} was not signed by the authority in {root_path}.")
    check_dates(issuers[0], root_path)
    check_dates(certificate, certificate_path)
    check_key(certificate, private_key, certificate_path, key_path)
    common_name, role = role_of(certificate_pem)
    if common_name != name:
        raise CertificateError(f"{certificate_path} is made out to {common_name!r}, not to {name!r}.")
    root_pem = b"".join(root.public_bytes(serialization.Encoding.PEM) for root in authorities)
    return Credentials(root_pem, certificate_pem, key_pem, name, role)


def describe_end(own: Credentials, now: datetime | None = None) -> str:
    """Return a sentence about a certificate that ends within WARNING_DAYS, and "" about another one."""
    expires = x509.load_pem_x509_certificate(own.certificate).not_valid_after_utc
    left = expires - (now or datetime.now(timezone.utc))
    if left > timedelta(days=WARNING_DAYS):
        return ""
    when = f"in {left.days} days" if left.days > 1 else "within two days"
    return f"the certificate of {own.role} '{own.name}' ends {when}, on {day(expires)}: renew it"


def names_of(certificate: bytes) -> list[str]:
    """Return the host names and addresses that a certificate (PEM or DER) is for, in its order."""
    load = x509.load_pem_x509_certificate if certificate.startswith(b"-----") else x509.load_der_x509_certificate
    try:
        extension = load(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in extension.value]


def serial_of(der: bytes) -> int:
    """Return the serial number of a certificate (DER). Raises ValueError."""
    return x509.load_der_x509_certificate(der).serial_number


def is_for(names: Sequence[str], host: str) -> bool:
    """Tell whether a certificate for `names` is one for `host`; a name may begin with a wildcard."""
    host = check_host(host).partition("%")[0]
    return host in names or f"*.{host.partition('.')[2]}" in names


class Owner(NamedTuple):
    """Owner of a certificate, as "role 'name'", with its serial number and its end in seconds of the clock."""

    name: str
    serial: int
    expires: float


@lru_cache(maxsize=4096)
def owner_of(pem: bytes) -> Owner:
    """Return the owner of a certificate. Raises CertificateError."""
    name, role = role_of(pem)
    certificate = x509.load_pem_x509_certificate(pem)
    return Owner(f"{role} '{name}'", certificate.serial_number, certificate.not_valid_after_utc.timestamp())


@lru_cache(maxsize=4096)
def role_of(pem: bytes) -> tuple[str, str]:
    """Return (common name, role) of a peer's certificate, as gRPC hands it to the server.

    TLS has verified it by then.
    """
    try:
        subject = x509.load_pem_x509_certificate(pem).subject
    except ValueError as error:
        raise CertificateError("The peer's certificate is not a PEM certificate.") from error
    names = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1:
        raise CertificateError(f"A certificate must have one common name, and this one has {len(names)}.")
    units = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    roles = [str(unit.value) for unit in units if unit.value in ROLES]
    if len(roles) != 1:
        raise CertificateError(
            f"The certificate of {names[0]!r} names no single role: its organizational unit (OU) must be "
            f"one of {', '.join(ROLES)}."
        )
    return names[0], roles[0]


def bad_name(name: str) -> str:
    """Return the sentence about a name that is none."""
    return (
        f"{name!r} cannot be a name: up to 64 letters, digits, dots, dashes and underscores, "
        "beginning with a letter or a digit."
    )


def pair_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a certificate and of its private key."""
    return folder / f"{name}.crt", folder / f"{name}.key"


def read_pem(path: Path) -> bytes:
    """Return the content of a certificate's or a key's file. Raises CertificateError."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        request = path.with_suffix(REQUEST)
        answer = f"put the authority's answer to {request.name} there." if request.exists() else _HOW
        raise CertificateError(f"{path} does not exist: {answer}") from error
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}.") from error


def _authorities(pem: bytes, path: Path) -> list[x509.Certificate]:
    """Return the certificates of authorities in a PEM file."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(f"{path} is not a PEM certificate.") from error
    return [each for each in certificates if _may_sign(each)]


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _has_signed(root: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def check_issued(pem: bytes, root: bytes, whose: str = "the author") -> None:
    """Raise CertificateError unless an authority in `root` (PEM) has signed the certificate `pem`, and it holds now."""
    path = Path(f"the certificate of {whose}")
    certificate = parse_certificate(pem, path)
    if not any(_has_signed(authority, certificate) for authority in _authorities(root, path)):
        raise CertificateError(f"{path} was not signed by the authority of this site's ca.crt.")
    check_dates(certificate, path, "its owner has to renew it")


def parse_certificate(pem: bytes, path: Path) -> x509.Certificate:
    """Return the certificate in `pem`, which was read from `path`. Raises CertificateError."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateError(f"{path} is not a PEM certificate.") from error


def _private_key(pem: bytes, path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    # TypeError: the key is encrypted, and a service that starts has no one to ask for a passphrase.
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path} is not a PEM private key without a passphrase.") from error


def check_dates(certificate: x509.Certificate, path: Path, advice: str = "") -> None:
    """Raise CertificateError, with `advice` on one that has expired, unless the certificate in `path` holds now."""
    now = datetime.now(timezone.utc)
    if now > certificate.not_valid_after_utc:
        raise CertificateError(
            f"{path} expired on {day(certificate.not_valid_after_utc)}: {advice or how_to_renew(certificate, path)}."
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{path} is not valid before {day(certificate.not_valid_before_utc)}, and this machine's clock says "
            f"{day(now)}."
        )


def how_to_renew(certificate: x509.Certificate, path: Path) -> str:
    """Return what to do about the certificate in `path`, which has ended or is about to."""
    if _may_sign(certificate):
        return "openfl-audio certificates make begins a new authority in another --out"
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    name, role = role_of(pem)
    hosts = " ".join(names_of(pem)) if role == DIRECTOR else ""
    if path.with_suffix(REQUEST).exists():
        for_hosts = f" --host {hosts}" if hosts else ""
        command = f"openfl-audio certificates request {name} --role {role}{for_hosts} --out {path.parent} --renew"
        return f"{command} asks the authority for a new one"
    return f"where its authority is, openfl-audio certificates make --{role} {hosts or name} --force makes a new one"


def check_key(
    certificate: x509.Certificate, private_key: PrivateKeyTypes, certificate_path: Path, key_path: Path
) -> None:
    """Raise CertificateError unless the key is that of the certificate; both were read from the paths."""
    if private_key.public_key() != certificate.public_key():
        raise CertificateError(f"{key_path} is not the private key that belongs to {certificate_path}.")


def day(moment: datetime) -> str:
    """Return a moment as people write it, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
