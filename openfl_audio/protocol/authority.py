"""The authority of a federation: makes, signs and writes certificates, offline, where its key lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openfl_audio.address import check_host, ip_address
from openfl_audio.errors import AddressError, CertificateError
from openfl_audio.files import Journal, replacing
from openfl_audio.protocol.certificates import (
    AUTHORITY,
    DIRECTOR,
    ENVOY,
    MONITOR,
    NAME,
    OPERATOR,
    ROLES,
    USER,
    bad_name,
    check_dates,
    check_key,
    day,
    load_key,
    pair_paths,
    parse_certificate,
    read_pem,
    role_of,
)

ISSUED = "issued.jsonl"  # in the authority's folder: serial, name, role and end of every certificate that it signed
AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# Certificates hold from a little before they are made: the clock of a small device may run behind the director's.
_CLOCK_TOLERANCE = timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """The federation's own certificate authority."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)


def create_authority(*, days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Authority:
    """Make a new authority, which can sign leaves and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "openfl-audio federation")])
    builder = (
        _builder(subject, subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Authority,
    name: str,
    role: str,
    *,
    hosts: Sequence[str] = (),
    days: int = LEAF_DAYS,
    now: datetime | None = None,
) -> tuple[bytes, bytes]:
    """Make a key pair and sign it, and return (certificate, private key) as PEM; see `sign`."""
    key = ec.generate_private_key(ec.SECP256R1())
    return sign(authority, key.public_key(), name, role, hosts=hosts, days=days, now=now), private_pem(key)


def sign(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    name: str,
    role: str,
    *,
    hosts: Sequence[str] = (),
    days: int = LEAF_DAYS,
    now: datetime | None = None,
) -> bytes:
    """Return a certificate (PEM) of `public_key` for `name`.

    The role is the subject's organizational unit, so that the director can tell an envoy from a notebook. `hosts` are
    the names and addresses under which a director is reached; without any, the name itself is the alternative name.
    """
    # One direction each: an envoy's certificate, copied off a device, cannot play the director.
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if role == DIRECTOR else ExtendedKeyUsageOID.CLIENT_AUTH
    issuer = authority.certificate
    builder = (
        _builder(subject_of(name, role), issuer.subject, public_key, days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(alternative_names(name, hosts), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private_key.public_key()), critical=False
        )
    )
    certificate = builder.sign(authority.private_key, hashes.SHA256())
    if certificate.not_valid_after_utc > issuer.not_valid_after_utc:
        raise CertificateError(
            f"The authority itself ends on {day(issuer.not_valid_after_utc)}, before {days} days are over: "
            "ask for fewer days, or begin a new authority in another folder."
        )
    return certificate.public_bytes(serialization.Encoding.PEM)


def subject_of(name: str, role: str) -> x509.Name:
    """Return what a certificate says of its owner. Raises CertificateError for a role that there is not."""
    if role not in ROLES:
        raise CertificateError(f"There is no role {role!r}; a certificate is for one of: {', '.join(ROLES)}.")
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
        ]
    )


def alternative_names(name: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """Return the names and addresses that a certificate is for: `hosts`, or without any the name itself."""
    return x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)] or [x509.DNSName(name)])


def write_certificates(
    folder: Path,
    *,
    director_hosts: Sequence[str] | None = None,
    envoys: Sequence[str] = (),
    users: Sequence[str] = (),
    operators: Sequence[str] = (),
    monitors: Sequence[str] = (),
    days: int = LEAF_DAYS,
    force: bool = False,
) -> list[Path]:
    """Sign the director (unless `director_hosts` is None), envoys and people by role; return the files written.

    The authority in `folder` is made by the first call and used by every later one, which is how an envoy is added. The
    first call may make it alone.
    `force` replaces leaves and never the authority: that would cut off everybody who holds one of its certificates. All
    arguments are checked before the first file is written.
    """
    if days < 1:
        raise CertificateError(f"A certificate has to hold for at least one day, not {days}.")
    names = {ENVOY: envoys, USER: users, OPERATOR: operators, MONITOR: monitors}
    roles = _roles(director_hosts is not None, names)
    hosts = tuple(dict.fromkeys(checked_host(host) for host in (*LOCAL_HOSTS, *(director_hosts or ()))))
    for name in roles:
        for path in pair_paths(folder, name):
            if path.exists() and not force:
                raise CertificateError(f"{path} exists already: --force replaces it.")

    written: list[Path] = []
    is_there = _authority_exists(folder)
    if is_there and not roles:
        raise CertificateError(
            f"{folder} has an authority already, and there is nothing to sign: give a director, an envoy, a user, an "
            "operator or a monitor."
        )
    authority = load_authority(folder) if is_there else create_authority(days=max(days, AUTHORITY_DAYS))
    leaves = {
        name: issue(authority, name, role, hosts=hosts if role == DIRECTOR else (), days=days)
        for name, role in roles.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_there:
            certificate = authority.certificate.public_bytes(serialization.Encoding.PEM)
            written += write_pair(folder, AUTHORITY, certificate, private_pem(authority.private_key))
        for name, (certificate, private_key) in leaves.items():
            note_issued(folder, certificate)
            written += write_pair(folder, name, certificate, private_key)
    except OSError as error:
        raise CertificateError(f"{error.filename or folder} cannot be written: {error.strerror}.") from error
    return written


def note_issued(folder: Path, pem: bytes) -> None:
    """Put a certificate on the authority's list, from which it can be revoked."""
    certificate, (name, role) = x509.load_pem_x509_certificate(pem), role_of(pem)
    expires = certificate.not_valid_after_utc.isoformat()
    record = {"serial": f"{certificate.serial_number:x}", "name": name, "role": role, "expires": expires}
    Journal(folder / ISSUED).append(record, durable=True)


def load_authority(folder: Path) -> Authority:
    """Return the authority in `folder`, with the key that signs."""
    certificate_path, key_path = pair_paths(folder, AUTHORITY)
    certificate = parse_certificate(read_pem(certificate_path), certificate_path)
    private_key = load_key(key_path)
    check_key(certificate, private_key, certificate_path, key_path)
    check_dates(certificate, certificate_path)
    return Authority(certificate, private_key)


def _roles(with_director: bool, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return roles by name, in the order of signing. Every name is usable as a file and used once."""
    roles: dict[str, str] = {DIRECTOR: DIRECTOR} if with_director else {}
    seen: set[str] = set()
    for role, name in [(role, name) for role, members in names.items() for name in members]:
        if not NAME.fullmatch(name):
            raise CertificateError(bad_name(name))
        # Compared without case, as some file systems do: "CA" would overwrite "ca".
        if name.casefold() in (AUTHORITY, DIRECTOR):
            raise CertificateError(f"The name {name!r} is reserved; give the {role} another one.")
        if name.casefold() in seen:
            raise CertificateError(f"The name {name!r} is given twice; every certificate needs its own.")
        seen.add(name.casefold())
        roles[name] = role
    return roles


def checked_host(host: str) -> str:
    """Return a name or address by which a director is reached, as a certificate has it. Raises CertificateError."""
    try:
        checked = check_host(host)
    except AddressError as error:
        raise CertificateError(f"{error}, as envoys dial it.") from error
    # A zone means something on one machine only. Where it is dialled, TLS compares the address without it.
    if "%" in checked:
        address = checked.partition("%")[0]
        raise CertificateError(f"{host!r} is neither a host name nor an IP address; give {address}, without the zone.")
    return checked


def _general_name(host: str) -> x509.GeneralName:
    address = ip_address(host)
    return x509.IPAddress(address) if address else x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int, now: datetime | None
) -> x509.CertificateBuilder:
    now = now or datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _authority_exists(folder: Path) -> bool:
    certificate, key = pair_paths(folder, AUTHORITY)
    if certificate.exists() != key.exists():
        found, missing = (certificate, key) if certificate.exists() else (key, certificate)
        raise CertificateError(
            f"{found} is there without {missing.name}: sign where the authority was made, or begin in an empty folder."
        )
    return key.exists()


def write_pair(folder: Path, name: str, certificate: bytes, private_key: bytes) -> tuple[Path, Path]:
    """Write a certificate and its private key, which only its owner may read, and return their files."""
    certificate_path, key_path = pair_paths(folder, name)
    write_pem(key_path, private_key, mode=0o600)
    write_pem(certificate_path, certificate)
    return certificate_path, key_path


def write_pem(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path`, whole or not at all; the file has its mode from its creation on."""
    with replacing(path, durable=True) as temporary:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
