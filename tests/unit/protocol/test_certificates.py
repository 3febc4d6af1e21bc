"""Certificates are read back, verified by other code than ours, and used in a real TLS handshake."""

import ipaddress
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from openfl_audio.errors import CertificateError
from openfl_audio.protocol.authority import ISSUED, create_authority, issue, load_authority, write_certificates
from openfl_audio.protocol.certificates import (
    AUTHORITY,
    describe_end,
    is_for,
    load_credentials,
    read_credentials,
    role_of,
)

NOW = datetime.now(timezone.utc)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Certificates of a director, two envoys and a user."""
    folder = tmp_path / "certificates"
    write_certificates(
        folder, director_hosts=["fl.example.org", "192.0.2.7"], envoys=["site-a", "site-b"], users=["ada"]
    )
    return folder


def read(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def save(folder: Path, name: str, pair: tuple[bytes, bytes]) -> None:
    (folder / f"{name}.crt").write_bytes(pair[0])
    (folder / f"{name}.key").write_bytes(pair[1])


# What is in a certificate


def test_private_keys_are_readable_by_their_owner_only(folder: Path) -> None:
    keys = sorted(folder.glob("*.key"))
    assert [key.stem for key in keys] == ["ada", "ca", "director", "site-a", "site-b"]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600] * 5


def test_private_keys_are_private_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = {}
    open_file = os.open

    def watched_open(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = open_file(path, flags, mode)
        if flags & os.O_CREAT:
            modes[path.name.split(".")[2]] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    monkeypatch.setattr("openfl_audio.protocol.authority.os.open", watched_open)
    previous = os.umask(0)
    try:
        write_certificates(tmp_path, envoys=["site-a"])
    finally:
        os.umask(previous)
    assert modes == {"key": 0o600, "crt": 0o644}


def test_no_temporary_file_is_left(folder: Path) -> None:
    assert {path.suffix for path in folder.iterdir()} == {".crt", ".key", ".jsonl"}


def test_director_is_known_by_its_names_addresses_and_locally(folder: Path) -> None:
    names = read(folder, "director").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(address) for address in ("127.0.0.1", "::1", "192.0.2.7")
    ]


@pytest.mark.parametrize("name", ["director", "site-a", "ada"])
def test_every_leaf_has_an_alternative_name_and_is_no_authority(folder: Path, name: str) -> None:
    extensions = read(folder, name).extensions
    assert len(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) > 0
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca


@pytest.mark.parametrize(
    ("name", "role", "purpose"),
    [
        ("director", "director", ExtendedKeyUsageOID.SERVER_AUTH),
        ("site-a", "envoy", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("ada", "user", ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_role_and_purpose(folder: Path, name: str, role: str, purpose: x509.ObjectIdentifier) -> None:
    assert role_of((folder / f"{name}.crt").read_bytes()) == (name, role)
    usage = read(folder, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [purpose]


@pytest.mark.parametrize("host", ["localhost", "fl.example.org", "192.0.2.7", "::1"])
def test_strict_verifier_accepts_director(folder: Path, host: str) -> None:
    verify_as_server(read(folder, AUTHORITY), read(folder, "director"), host)


def test_strict_verifier_accepts_envoys_and_users(folder: Path) -> None:
    verifier = PolicyBuilder().store(Store([read(folder, AUTHORITY)])).build_client_verifier()
    for name in ("site-a", "site-b", "ada"):
        assert verifier.verify(read(folder, name), []).chain[-1] == read(folder, AUTHORITY)


def test_strict_verifier_refuses_another_host_another_authority_and_an_envoy_as_server(folder: Path) -> None:
    root = read(folder, AUTHORITY)
    with pytest.raises(VerificationError):
        verify_as_server(root, read(folder, "director"), "other.example.org")
    with pytest.raises(VerificationError):
        verify_as_server(create_authority().certificate, read(folder, "director"), "localhost")
    with pytest.raises(VerificationError):
        verify_as_server(root, read(folder, "site-a"), "site-a")


def verify_as_server(root: x509.Certificate, certificate: x509.Certificate, host: str) -> None:
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    verifier = PolicyBuilder().store(Store([root])).build_server_verifier(subject)  # type: ignore[arg-type]
    verifier.verify(certificate, [])


# Adding and replacing


def test_later_call_adds_an_envoy_under_the_same_authority(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ISSUED}
    written = write_certificates(folder, envoys=["site-c"])
    assert written == [folder / "site-c.crt", folder / "site-c.key"]
    assert {name: (folder / name).read_bytes() for name in before} == before
    read(folder, "site-c").verify_directly_issued_by(read(folder, AUTHORITY))


@pytest.mark.parametrize("suffix", ["crt", "key"])
def test_existing_file_is_not_overwritten_and_nothing_else_is_written(folder: Path, suffix: str) -> None:
    (folder / f"site-a.{'key' if suffix == 'crt' else 'crt'}").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CertificateError, match=rf"site-a\.{suffix} exists already: --force replaces it\."):
        write_certificates(folder, envoys=["site-new", "site-a"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_force_replaces_the_leaf_and_keeps_the_authority(folder: Path) -> None:
    authority, leaf = read(folder, AUTHORITY), read(folder, "site-a")
    write_certificates(folder, envoys=["site-a"], force=True)
    assert read(folder, AUTHORITY) == authority
    assert read(folder, "site-a") != leaf
    assert load_credentials(folder, "site-a").role == "envoy"
    assert stat.S_IMODE((folder / "site-a.key").stat().st_mode) == 0o600


def test_authority_without_its_key_signs_nothing(folder: Path) -> None:
    (folder / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.crt is there without ca\.key: sign where the authority was made"):
        write_certificates(folder, envoys=["site-c"])
    assert not (folder / "ca.key").exists()


def test_leaf_does_not_outlive_the_authority(folder: Path) -> None:
    with pytest.raises(CertificateError, match="The authority itself ends on .*, before 4000 days are over"):
        write_certificates(folder, envoys=["site-c"], days=4000)
    assert not (folder / "site-c.crt").exists()


def test_first_call_may_ask_for_more_days_than_the_authority_usually_has(tmp_path: Path) -> None:
    write_certificates(tmp_path, envoys=["site-a"], days=4000)
    assert load_credentials(tmp_path, "site-a").name == "site-a"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "ümlaut", "x" * 65, "x\n"])
def test_unusable_name_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match="cannot be a name: up to 64 letters"):
        write_certificates(tmp_path, envoys=[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ca", "director", "CA", "Director"])
def test_reserved_name_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match=f"The name '{name}' is reserved; give the user another one"):
        write_certificates(tmp_path, users=[name])


def test_name_used_by_envoy_and_user_raises(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="The name 'ADA' is given twice"):
        write_certificates(tmp_path, envoys=["ada"], users=["ADA"])


@pytest.mark.parametrize(
    "host",
    [
        "",
        "https://fl.example.org",
        "fl.example.org:50051",
        "10.0.0.256",
        "a..b",
        "-a",
        "fe80::1%eth0",
        "bücher.example",
    ],
)
def test_unusable_host_raises(tmp_path: Path, host: str) -> None:
    with pytest.raises(CertificateError, match="is neither a host name nor an IP address"):
        write_certificates(tmp_path, director_hosts=[host])


def test_an_authority_is_made_alone_once(tmp_path: Path) -> None:
    assert {path.name for path in write_certificates(tmp_path)} == {"ca.crt", "ca.key"}
    before = (tmp_path / "ca.crt").read_bytes()
    with pytest.raises(CertificateError, match=f"{tmp_path} has an authority already, and there is nothing to sign"):
        write_certificates(tmp_path)
    assert (tmp_path / "ca.crt").read_bytes() == before


@pytest.mark.parametrize("days", [0, -1])
def test_no_days_raises(tmp_path: Path, days: int) -> None:
    with pytest.raises(CertificateError, match=f"has to hold for at least one day, not {days}"):
        write_certificates(tmp_path, envoys=["site-a"], days=days)


def test_unknown_role_raises() -> None:
    with pytest.raises(
        CertificateError, match="There is no role 'admin'; a certificate is for one of: director, envoy, user"
    ):
        issue(create_authority(), "x", "admin")


def test_folder_that_is_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "certificates").write_text("")
    with pytest.raises(CertificateError, match="certificates cannot be written: File exists"):
        write_certificates(tmp_path / "certificates", envoys=["site-a"])


# Loading: one sentence for each thing that can be wrong


def test_credentials_hold_the_files_and_hide_the_key(folder: Path) -> None:
    credentials = load_credentials(folder, "site-a")
    assert (credentials.name, credentials.role) == ("site-a", "envoy")
    assert credentials.root == (folder / "ca.crt").read_bytes()
    assert credentials.certificate == (folder / "site-a.crt").read_bytes()
    assert credentials.private_key == (folder / "site-a.key").read_bytes()
    assert "PRIVATE" not in repr(credentials)


def test_credentials_need_no_authority_key(folder: Path) -> None:
    (folder / "ca.key").unlink()
    assert load_credentials(folder, "director").role == "director"


def test_files_may_lie_anywhere(folder: Path, tmp_path: Path) -> None:
    root, certificate = folder / "ca.crt", folder / "ada.crt"
    key = (folder / "ada.key").rename(tmp_path / "elsewhere.pem")
    assert read_credentials(root, certificate, key, "ada").role == "user"


def test_missing_folder_raises(tmp_path: Path) -> None:
    sentence = "The certificate folder .*none does not exist: openfl-audio certificates make or request writes it, or"
    with pytest.raises(CertificateError, match=sentence):
        load_credentials(tmp_path / "none", "site-a")


@pytest.mark.parametrize("file", ["ca.crt", "site-a.crt", "site-a.key"])
def test_missing_file_raises(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(
        CertificateError, match=f"{file} does not exist: openfl-audio certificates make or request writes it, or --dis"
    ):
        load_credentials(folder, "site-a")


def test_unreadable_file_raises(folder: Path) -> None:
    (folder / "site-a.key").unlink()
    (folder / "site-a.key").mkdir()
    with pytest.raises(CertificateError, match="site-a.key cannot be read: Is a directory"):
        load_credentials(folder, "site-a")


@pytest.mark.parametrize("file", ["ca.crt", "site-a.crt"])
@pytest.mark.parametrize(
    "content", [b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_certificate_that_is_no_pem_raises(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(CertificateError, match=f"{file} is not a PEM certificate"):
        load_credentials(folder, "site-a")


@pytest.mark.parametrize("content", [b"", b"not PEM"])
def test_key_that_is_no_pem_raises(folder: Path, content: bytes) -> None:
    (folder / "site-a.key").write_bytes(content)
    with pytest.raises(CertificateError, match="site-a.key is not a PEM private key without a passphrase"):
        load_credentials(folder, "site-a")


def test_encrypted_key_raises(folder: Path) -> None:
    key = serialization.load_pem_private_key((folder / "site-a.key").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    (folder / "site-a.key").write_bytes(encrypted)
    with pytest.raises(CertificateError, match="site-a.key is not a PEM private key without a passphrase"):
        load_credentials(folder, "site-a")


def test_expired_certificate_raises_with_the_date(folder: Path) -> None:
    then = NOW - timedelta(days=40)
    save(folder, "site-a", issue(load_authority(folder), "site-a", "envoy", days=30, now=then))
    expired = (then + timedelta(days=30)).strftime("%Y-%m-%d %H:%M UTC")
    made = "where its authority is, openfl-audio certificates make --envoy site-a --force makes a new one"
    with pytest.raises(CertificateError, match=f"site-a.crt expired on {expired}: {made}"):
        load_credentials(folder, "site-a")


def test_certificate_of_tomorrow_raises_with_both_dates(folder: Path) -> None:
    then = NOW + timedelta(days=2)
    save(folder, "site-a", issue(load_authority(folder), "site-a", "envoy", now=then))
    begin = (then - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M UTC")
    with pytest.raises(
        CertificateError, match=f"site-a.crt is not valid before {begin}, and this machine's clock says"
    ):
        load_credentials(folder, "site-a")


def test_clock_that_is_half_an_hour_behind_is_tolerated(folder: Path) -> None:
    pair = issue(load_authority(folder), "site-a", "envoy", now=NOW + timedelta(minutes=30))
    save(folder, "site-a", pair)
    assert load_credentials(folder, "site-a").name == "site-a"


def test_expired_authority_raises(folder: Path) -> None:
    authority = create_authority(days=30, now=NOW - timedelta(days=40))
    save(folder, "site-a", issue(authority, "site-a", "envoy", days=5, now=NOW - timedelta(days=40)))
    (folder / "ca.crt").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="ca.crt expired on .*: openfl-audio certificates make begins a new"):
        load_credentials(folder, "site-a")


def test_certificate_of_another_authority_raises(folder: Path) -> None:
    # Same subject as ours, other key: only the signature tells them apart.
    save(folder, "site-a", issue(create_authority(), "site-a", "envoy"))
    with pytest.raises(CertificateError, match="site-a.crt was not signed by the authority in .*ca.crt"):
        load_credentials(folder, "site-a")


def test_key_of_another_certificate_raises(folder: Path) -> None:
    (folder / "site-b.key").replace(folder / "site-a.key")
    with pytest.raises(CertificateError, match="site-a.key is not the private key that belongs to .*site-a.crt"):
        load_credentials(folder, "site-a")


def test_certificate_of_another_name_raises(folder: Path) -> None:
    for suffix in ("crt", "key"):
        (folder / f"site-b.{suffix}").replace(folder / f"site-a.{suffix}")
    with pytest.raises(CertificateError, match=r"site-a.crt is made out to 'site-b', not to 'site-a'"):
        load_credentials(folder, "site-a")


def test_name_that_leaves_the_folder_raises(folder: Path) -> None:
    with pytest.raises(CertificateError, match="cannot be a name"):
        load_credentials(folder / "inside", "../site-a")


def test_role_of_something_else_raises() -> None:
    with pytest.raises(CertificateError, match="The peer's certificate is not a PEM certificate"):
        role_of(b"nothing")


def test_certificate_without_role_raises() -> None:
    authority = create_authority().certificate
    with pytest.raises(CertificateError, match=r"names no single role: its organizational unit \(OU\) must be one of"):
        role_of(authority.public_bytes(serialization.Encoding.PEM))


def test_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, openfl_audio.protocol.certificates\n"
        "print([name for name in ('torch', 'openfl', 'numpy', 'grpc') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


# TLS, with the library that director and envoys use


class WhoAmI(grpc.GenericRpcHandler):
    """Answers every call with the caller's name and role."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            return " ".join(role_of(context.auth_context()["x509_pem_cert"][0])).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def serving(folder: Path, name: str = "director") -> Iterator[int]:
    own = load_credentials(folder, name)
    credentials = grpc.ssl_server_credentials([(own.private_key, own.certificate)], own.root, require_client_auth=True)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[WhoAmI()])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def ask(port: int, root: bytes, private_key: bytes | None, certificate: bytes | None, host: str = "127.0.0.1") -> str:
    credentials = grpc.ssl_channel_credentials(root, private_key, certificate)
    options = [("grpc.ssl_target_name_override", host)] if host != "127.0.0.1" else []
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        return channel.unary_unary("/test/WhoAmI")(b"", timeout=20).decode()


@pytest.mark.parametrize(("name", "role"), [("site-a", "envoy"), ("ada", "user")])
def test_director_and_client_prove_who_they_are(folder: Path, name: str, role: str) -> None:
    own = load_credentials(folder, name)
    with serving(folder) as port:
        assert ask(port, own.root, own.private_key, own.certificate) == f"{name} {role}"
        assert ask(port, own.root, own.private_key, own.certificate, host="fl.example.org") == f"{name} {role}"


def refusal(
    port: int, root: bytes, private_key: bytes | None, certificate: bytes | None, **options: str
) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        ask(port, root, private_key, certificate, **options)
    return caught.value.code()


def test_director_refuses_a_client_without_and_with_a_foreign_certificate(folder: Path) -> None:
    root = (folder / "ca.crt").read_bytes()
    certificate, private_key = issue(create_authority(), "site-a", "envoy")
    with serving(folder) as port:
        assert refusal(port, root, None, None) is grpc.StatusCode.UNAVAILABLE
        assert refusal(port, root, private_key, certificate) is grpc.StatusCode.UNAVAILABLE


def test_director_refuses_an_expired_client(folder: Path) -> None:
    own = load_credentials(folder, "site-a")
    certificate, private_key = issue(load_authority(folder), "site-a", "envoy", days=1, now=NOW - timedelta(days=3))
    with serving(folder) as port:
        assert refusal(port, own.root, private_key, certificate) is grpc.StatusCode.UNAVAILABLE


def test_client_refuses_a_director_of_another_authority_and_of_another_host(folder: Path) -> None:
    own = load_credentials(folder, "site-a")
    foreign_root = create_authority().certificate.public_bytes(serialization.Encoding.PEM)
    with serving(folder) as port:
        assert refusal(port, foreign_root, own.private_key, own.certificate) is grpc.StatusCode.UNAVAILABLE
        code = refusal(port, own.root, own.private_key, own.certificate, host="other.example.org")
        assert code is grpc.StatusCode.UNAVAILABLE


def test_client_refuses_an_envoy_that_plays_the_director(folder: Path) -> None:
    own = load_credentials(folder, "site-a")
    with serving(folder, name="site-b") as port:
        code = refusal(port, own.root, own.private_key, own.certificate, host="site-b")
        assert code is grpc.StatusCode.UNAVAILABLE


def test_subject_is_name_and_role_only(folder: Path) -> None:
    attributes = [(part.oid, part.value) for part in read(folder, "site-a").subject]
    assert attributes == [(NameOID.COMMON_NAME, "site-a"), (NameOID.ORGANIZATIONAL_UNIT_NAME, "envoy")]


@pytest.mark.parametrize(("host", "good"), [
    ("fl.example.org", True), ("FL.example.org", True), ("[2001:db8::1]", True), ("2001:db8::1%eth0", True),
    ("a.sites.example.org", True), ("a.b.sites.example.org", False), ("example.org", False), ("192.0.2.8", False),
])  # fmt: skip
def test_a_certificate_is_for_the_names_it_has(host, good):
    assert is_for(["fl.example.org", "2001:db8::1", "*.sites.example.org"], host) is good


def test_without_a_folder_tls_is_what_is_missing():
    with pytest.raises(CertificateError, match="TLS needs certificates: set `certificates`"):
        load_credentials(None, "a")


@pytest.mark.parametrize(
    ("days_left", "when"), [(31, None), (29, "in 29 days, on"), (1, "within two days"), (0, "within two days")]
)
def test_that_a_certificate_ends_soon_is_said(folder: Path, days_left: int, when: str | None) -> None:
    own = load_credentials(folder, "site-a")
    sentence = describe_end(own, read(folder, "site-a").not_valid_after_utc - timedelta(days=days_left, hours=1))
    assert when is None or f"the certificate of envoy 'site-a' ends {when}" in sentence
    assert (when is None) == (sentence == "")
