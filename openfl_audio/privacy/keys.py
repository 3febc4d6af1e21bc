"""Keys of one attempt of a round: X25519 (RFC 7748) with HKDF-SHA256 (RFC 5869), and shares sealed by AES-256-GCM.

A key pair is made for one attempt and forgotten with it, so that no later secret opens what was sent before.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from openfl_audio.errors import SecureAggregationError

KEY_BYTES = 32
NONCE_BYTES = 12


class KeyPair:
    """A pair of X25519 keys."""

    def __init__(self, private: bytes | None = None) -> None:
        """Make a new pair, or the one with a `private` key of KEY_BYTES."""
        self._key = X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)

    @property
    def private(self) -> bytes:
        """Return the private key, KEY_BYTES long."""
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """Return the public key, KEY_BYTES long."""
        return self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes, purpose: bytes) -> bytes:
        """Return the key, KEY_BYTES long, that this pair and the owner of `public` have in common for a `purpose`.

        Raises SecureAggregationError for a public key that makes the result known to all (a point of small order).
        """
        try:
            return derive(self._key.exchange(X25519PublicKey.from_public_bytes(public)), purpose)
        except ValueError:
            raise SecureAggregationError("a public key is none of X25519 that can be used") from None


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Return a key of KEY_BYTES for a `purpose`: HKDF-SHA256 without salt."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(secret)


def seal(key: bytes, text: bytes, about: bytes) -> bytes:
    """Encrypt `text`, bound to what it is `about`: a random nonce, then AES-256-GCM."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what `seal` has encrypted. Raises SecureAggregationError unless key and `about` are the same."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
    except (InvalidTag, ValueError):
        raise SecureAggregationError("sealed shares cannot be opened: keys or participants are not the same") from None
