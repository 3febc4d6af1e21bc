"""Signatures by the keys of certificates: ECDSA with SHA-256, as text in base64."""

import base64
import binascii

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from openfl_audio.errors import CertificateError
from openfl_audio.protocol.certificates import Credentials


def sign(own: Credentials, statement: bytes) -> str:
    """Return the signature of `statement`. Raises CertificateError for a key of another kind, which cannot sign."""
    key = load_pem_private_key(own.private_key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"the key of '{own.name}' is no elliptic-curve key, as this project makes them.")
    return base64.b64encode(key.sign(statement, ec.ECDSA(hashes.SHA256()))).decode()


def has_signed(certificate: str, signature: str, statement: bytes) -> bool:
    """Tell whether the key of `certificate` (PEM) has made the signature; False also for what is no certificate."""
    try:
        key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(base64.b64decode(signature), statement, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True
