import pytest

from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy.keys import KeyPair, derive, seal, unseal

# RFC 7748, section 6.1.
ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
BOB_PUBLIC = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
COMMON = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def test_keys_are_those_of_the_standard() -> None:
    alice, bob = KeyPair(bytes.fromhex(ALICE)), KeyPair(bytes.fromhex(BOB))
    assert (alice.public.hex(), bob.public.hex()) == (ALICE_PUBLIC, BOB_PUBLIC)
    expected = derive(bytes.fromhex(COMMON), b"masks")
    assert alice.agree(bob.public, b"masks") == bob.agree(alice.public, b"masks") == expected
    assert KeyPair(alice.private).public == alice.public


def test_derivation_is_that_of_the_standard() -> None:
    # RFC 5869, appendix A.3: no salt, no information.
    assert derive(b"\x0b" * 22, b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_each_purpose_and_each_pair_has_its_own_key() -> None:
    pair, others = KeyPair(), [KeyPair(), KeyPair()]
    keys = {pair.agree(other.public, purpose) for other in others for purpose in (b"tensors", b"numbers")}
    assert len(keys) == 4


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), bytes(31)])
def test_public_key_that_makes_the_secret_known_is_refused(public: bytes) -> None:
    with pytest.raises(SecureAggregationError, match="none of X25519 that can be used"):
        KeyPair().agree(public, b"masks")


def test_sealed_text_opens_with_its_key_and_its_subject_only() -> None:
    key, sealed = bytes(range(32)), seal(bytes(range(32)), b"two shares", b"from a to b")
    assert unseal(key, sealed, b"from a to b") == b"two shares"
    assert sealed != seal(key, b"two shares", b"from a to b")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for attempt in ((key, sealed, b"from b to a"), (bytes(32), sealed, b"from a to b"), (key, changed, b"from a to b")):
        with pytest.raises(SecureAggregationError, match="sealed shares cannot be opened"):
            unseal(*attempt)
    with pytest.raises(SecureAggregationError, match="sealed shares cannot be opened"):
        unseal(key, b"short", b"")
