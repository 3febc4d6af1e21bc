"""Requests for certificates: the key is made where it stays, and one file goes each way."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from openfl_audio.errors import CertificateError
from openfl_audio.files import make_folder
from openfl_audio.protocol.authority import (
    LEAF_DAYS,
    alternative_names,
    checked_host,
    load_authority,
    note_issued,
    private_pem,
    sign,
    subject_of,
    write_pem,
)
from openfl_audio.protocol.certificates import (
    AUTHORITY,
    DIRECTOR,
    NAME,
    REQUEST,
    ROLES,
    bad_name,
    load_key,
    pair_paths,
)


class Request(NamedTuple):
    """Content of a request: the name, role and hosts that it asks for, and the public key that it is for."""

    name: str
    role: str
    hosts: tuple[str, ...]
    public_key: ec.EllipticCurvePublicKey

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the public key (DER), in hexadecimal: both sides may compare it."""
        digest = hashes.Hash(hashes.SHA256())
        encoded = self.public_key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest.update(encoded)
        return digest.finalize().hex()


def write_request(folder: Path, name: str, role: str, hosts: Sequence[str] = (), renew: bool = False) -> Path:
    """Write NAME.csr into `folder` beside the private key NAME.key, and return its path.

    The key is made here and stays here. With `renew` the request is for the key that is there already.
    """
    if not NAME.fullmatch(name) or name.casefold() == AUTHORITY:
        raise CertificateError(bad_name(name))
    if (role == DIRECTOR) != bool(hosts) or (role == DIRECTOR) != (name == DIRECTOR):
        raise CertificateError(
            f"A request for a {role} named {name!r} with {len(hosts)} hosts cannot be right: the director is named "
            f"{DIRECTOR!r} and has the hosts by which it is reached, and nobody else has."
        )
    _, key_path = pair_paths(folder, name)
    if key_path.exists() != renew:
        advice = "renew its certificate, or choose another folder" if key_path.exists() else "request a first one"
        raise CertificateError(f"{key_path} {'exists already' if key_path.exists() else 'does not exist'}: {advice}.")
    names = alternative_names(name, [checked_host(host) for host in hosts])
    subject = subject_of(name, role)
    try:
        make_folder(folder)
        if renew:
            key = load_key(key_path)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            write_pem(key_path, private_pem(key), mode=0o600)
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
        path = folder / f"{name}{REQUEST}"
        write_pem(path, request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise CertificateError(f"{error.filename or folder} cannot be written: {error.strerror}.") from error
    return path


def read_request(path: Path) -> Request:
    """Return what a file asks for. Raises CertificateError unless whoever wrote it has the private key."""
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError:
        raise CertificateError(f"{path} is no request: openfl-audio certificates request writes one.") from None
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not request.is_signature_valid:
        raise CertificateError(f"{path} is not signed by the elliptic-curve key that it is for.")
    names = [str(each.value) for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    roles = [str(each.value) for each in request.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
    if len(names) != 1 or len(roles) != 1 or roles[0] not in ROLES:
        raise CertificateError(f"{path} must ask for one name and one role of: {', '.join(ROLES)}.")
    if not NAME.fullmatch(names[0]):
        raise CertificateError(f"{path}: {bad_name(names[0])}")
    hosts: tuple[str, ...] = ()
    if roles[0] == DIRECTOR:
        extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        hosts = tuple(checked_host(str(host.value)) for host in extension.value)
    return Request(names[0], roles[0], hosts, key)


def sign_request(authority: Path, path: Path, role: str, days: int = LEAF_DAYS, force: bool = False) -> Path:
    """Sign the request in `path` with the authority in a folder, and return the answer, a file in that folder.

    The answer has the certificate and, behind it, that of the authority. `role` is what the signer expects: a request
    says of itself what it is for. Raises CertificateError.
    """
    request = read_request(path)
    if request.role != role:
        raise CertificateError(f"{path} asks for the role {request.role} of {request.name!r}, not for {role}.")
    answer, _ = pair_paths(authority, request.name)
    if answer.exists() and not force:
        raise CertificateError(f"{answer} exists already: --force signs another one.")
    signing = load_authority(authority)
    certificate = sign(signing, request.public_key, request.name, role, hosts=request.hosts, days=days)
    note_issued(authority, certificate)
    write_pem(answer, certificate + signing.certificate.public_bytes(serialization.Encoding.PEM))
    return answer
