"""Keys stay where they were made; what is signed is what was asked for, and what the signer expects."""

import shlex
import stat
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from openfl_audio.cli.main import main
from openfl_audio.errors import CertificateError
from openfl_audio.protocol.authority import create_authority, issue, load_authority, sign, write_certificates
from openfl_audio.protocol.certificate_requests import read_request, sign_request, write_request
from openfl_audio.protocol.certificates import load_credentials, names_of, read_credentials


@pytest.fixture
def authority(tmp_path):
    write_certificates(tmp_path / "authority", users=["ada"])
    return tmp_path / "authority"


def test_one_file_each_way_gives_a_site_its_credentials_and_the_key_stays(tmp_path, authority):
    site = tmp_path / "site"
    request = write_request(site, "site-a", "envoy")
    assert stat.S_IMODE((site / "site-a.key").stat().st_mode) == 0o600
    assert b"PRIVATE" not in request.read_bytes()
    answer = sign_request(authority, request, "envoy")
    assert not (authority / "site-a.key").exists()
    (site / "site-a.crt").write_bytes(answer.read_bytes())
    own = load_credentials(site, "site-a")
    assert (own.name, own.role) == ("site-a", "envoy")
    assert own.root == (authority / "ca.crt").read_bytes()
    # A notebook may name the answer as the authority's file, too.
    assert read_credentials(answer, answer, site / "site-a.key", "site-a").root == own.root


def test_a_director_asks_for_the_hosts_by_which_it_is_reached(tmp_path, authority):
    request = write_request(tmp_path / "server", "director", "director", ["fl.example.org", "192.0.2.7"])
    answer = sign_request(authority, request, "director")
    assert names_of(answer.read_bytes()) == ["fl.example.org", "192.0.2.7"]


def test_a_certificate_is_renewed_for_the_key_that_is_there(tmp_path, authority):
    site = tmp_path / "site"
    request = write_request(site, "site-a", "envoy")
    first = sign_request(authority, request, "envoy").read_bytes()
    key = (site / "site-a.key").read_bytes()
    with pytest.raises(CertificateError, match=r"site-a\.key exists already: renew its certificate"):
        write_request(site, "site-a", "envoy")
    renewal = write_request(site, "site-a", "envoy", renew=True)
    assert read_request(renewal).fingerprint == read_request(request).fingerprint
    with pytest.raises(CertificateError, match=r"site-a\.crt exists already: --force signs another one"):
        sign_request(authority, renewal, "envoy")
    second = sign_request(authority, renewal, "envoy", force=True).read_bytes()
    assert (site / "site-a.key").read_bytes() == key
    assert len({x509.load_pem_x509_certificate(each).serial_number for each in (first, second)}) == 2


@pytest.mark.parametrize(("name", "hosts"), [("site-a", []), ("director", ["fl.example.org", "192.0.2.7"])])
def test_a_certificate_that_came_by_request_and_has_ended_is_renewed_by_request(tmp_path, authority, name, hosts):
    site = tmp_path / "site"
    request = write_request(site, name, "director" if hosts else "envoy", hosts)
    with pytest.raises(CertificateError, match=f"{name}.crt does not exist: put the authority's answer to {name}.csr"):
        load_credentials(site, name)
    then = datetime.now(timezone.utc) - timedelta(days=40)
    found = read_request(request)
    ended = sign(load_authority(authority), found.public_key, name, found.role, hosts=found.hosts, days=30, now=then)
    (site / f"{name}.crt").write_bytes(ended)
    (site / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    with pytest.raises(CertificateError, match="expired on .* UTC: openfl-audio certificates request") as caught:
        load_credentials(site, name)
    said = str(caught.value)
    command = said[said.index("openfl-audio") : said.index(" asks the authority for a new one.")]
    asked = f"director --role director --host {' '.join(hosts)}" if hosts else "site-a --role envoy"
    assert command == f"openfl-audio certificates request {asked} --out {site} --renew"
    assert main(shlex.split(command)[1:]) == 0
    renewed = sign_request(authority, request, found.role)
    (site / f"{name}.crt").write_bytes(renewed.read_bytes())
    assert load_credentials(site, name).name == name


def test_a_site_cannot_ask_for_more_than_the_signer_expects(tmp_path, authority):
    request = write_request(tmp_path / "site", "site-a", "operator")
    with pytest.raises(CertificateError, match="asks for the role operator of 'site-a', not for envoy"):
        sign_request(authority, request, "envoy")
    assert not (authority / "site-a.crt").exists()


@pytest.mark.parametrize(
    ("name", "role", "hosts", "sentence"),
    [
        ("../site", "envoy", (), "cannot be a name"),
        ("ca", "envoy", (), "cannot be a name"),
        ("site", "boss", (), "no role 'boss'"),
        ("director", "director", (), "the hosts by which it is reached"),
        ("site", "envoy", ("fl.example.org",), "the hosts by which it is reached"),
        ("site", "director", ("fl.example.org",), "named 'director'"),
        ("director", "director", ("no host",), "no host"),
    ],
)
def test_what_cannot_be_asked_for_is_said_and_nothing_is_written(tmp_path, name, role, hosts, sentence):
    with pytest.raises(CertificateError, match=sentence):
        write_request(tmp_path / "site", name, role, hosts)
    assert not (tmp_path / "site").exists()


def test_what_is_no_request_is_said(tmp_path, authority):
    path = tmp_path / "site.csr"
    with pytest.raises(CertificateError, match=r"site\.csr cannot be read"):
        sign_request(authority, path, "envoy")
    path.write_bytes((authority / "ada.crt").read_bytes())
    with pytest.raises(CertificateError, match=r"site\.csr is no request"):
        sign_request(authority, path, "envoy")
    changed = write_request(tmp_path / "site", "site-a", "envoy").read_bytes().splitlines()
    changed[-2] = changed[-2][:-6] + b"AAAA" + changed[-2][-2:]  # the end of the signature
    path.write_bytes(b"\n".join(changed))
    with pytest.raises(CertificateError, match=r"site\.csr is (not signed|no request)"):
        sign_request(authority, path, "envoy")


def test_while_one_authority_takes_over_from_another_both_are_good(tmp_path):
    old, new = create_authority(), create_authority()
    for name, authority in (("old", old), ("new", new)):
        certificate, key = issue(authority, name, "envoy")
        (tmp_path / f"{name}.crt").write_bytes(certificate)
        (tmp_path / f"{name}.key").write_bytes(key)
    roots = [each.certificate.public_bytes(serialization.Encoding.PEM) for each in (old, new)]
    (tmp_path / "ca.crt").write_bytes(b"".join(roots))
    assert {load_credentials(tmp_path, name).root for name in ("old", "new")} == {b"".join(roots)}
    (tmp_path / "ca.crt").write_bytes(roots[1])
    with pytest.raises(CertificateError, match=r"old\.crt was not signed by the authority in .*ca\.crt"):
        load_credentials(tmp_path, "old")
