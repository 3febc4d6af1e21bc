"""The list of revoked certificates: what is on it, and how it is read again."""

from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509

from openfl_audio.errors import CertificateError
from openfl_audio.protocol.authority import ISSUED, write_certificates
from openfl_audio.protocol.revocation import REVOKED, RevocationList, Revoked, read_list, revoke

NOW = datetime.now(timezone.utc)


@pytest.fixture
def authority(tmp_path):
    write_certificates(tmp_path, envoys=["site-a", "site-b"], users=["ada"])
    return tmp_path


def serial_of(authority, name):
    return x509.load_pem_x509_certificate((authority / f"{name}.crt").read_bytes()).serial_number


def test_all_certificates_of_a_name_are_revoked_and_no_others(authority):
    first = serial_of(authority, "site-a")
    write_certificates(authority, envoys=["site-a"], force=True)
    assert revoke(authority, ["site-a"]) == authority / REVOKED
    revoke(authority, ["ada"], "stop")
    revoked = read_list(authority / REVOKED)
    assert {serial: entry[:2] for serial, entry in revoked.items()} == {
        first: ("site-a", "keep"),
        serial_of(authority, "site-a"): ("site-a", "keep"),
        serial_of(authority, "ada"): ("ada", "stop"),
    }


def test_an_authority_without_a_list_of_what_it_signed_goes_by_its_files(authority):
    (authority / ISSUED).unlink()
    revoke(authority, ["site-b"])
    assert list(read_list(authority / REVOKED)) == [serial_of(authority, "site-b")]


def test_a_name_without_a_certificate_is_said_and_nothing_changes(authority):
    with pytest.raises(CertificateError, match="no valid certificate of 'site-c'; it has some of ada, site-a, site-b"):
        revoke(authority, ["site-a", "site-c"])
    with pytest.raises(CertificateError, match="nobody to revoke"):
        revoke(authority, [])
    assert not (authority / REVOKED).exists()


def test_the_list_is_read_again_when_it_changes_and_holds_when_it_cannot_be(authority, caplog):
    revoked = RevocationList(authority / REVOKED)
    assert not revoked.current()
    revoke(authority, ["site-a"])
    assert list(revoked.current()) == [serial_of(authority, "site-a")]
    revoke(authority, ["site-b"])
    assert len(revoked.current()) == 2
    (authority / REVOKED).write_text("nonsense\n")
    assert len(revoked.current()) == 2
    assert "line 1: 'nonsense' should be a serial in hexadecimal" in caplog.text
    (authority / REVOKED).unlink()
    assert len(revoked.current()) == 2
    (authority / REVOKED).write_text("# nobody any more\n\n")
    assert not revoked.current()
    assert not RevocationList(None).current()


def test_a_list_that_is_none_is_no_start(authority):
    (authority / REVOKED).write_text("1f ada keep 2026-05-31T17:00:00+00:00\n1f ada keep yesterday\n")
    with pytest.raises(CertificateError, match="line 2: '1f ada keep yesterday'"):
        RevocationList(authority / REVOKED)


def test_experiments_are_stopped_of_the_owner_from_before_and_by_wish_only():
    before, after = (NOW - timedelta(seconds=1)).timestamp(), (NOW + timedelta(seconds=1)).timestamp()
    stopping = Revoked("ada", "stop", NOW)
    assert stopping.stops("ada", before)
    assert not stopping.stops("ada", after)
    assert not stopping.stops("bob", before)
    assert not Revoked("ada", "keep", NOW).stops("ada", before)
