"""Hosts, ports and proxies, read as gRPC and people read them."""

import socket

import pytest

from openfl_audio.address import (
    EXEMPTION_VARIABLES,
    PROXY_VARIABLES,
    check_host,
    is_this_machine,
    join_address,
    proxy_of,
    route_to,
    split_address,
)
from openfl_audio.errors import AddressError


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*PROXY_VARIABLES, *EXEMPTION_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("fl.example.org:50052", "fl.example.org", 50052),
        ("fl.example.org", "fl.example.org", 50051),
        ("FL.Example.org:1", "fl.example.org", 1),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("[::1]:50052", "::1", 50052),
        ("::1:50052", "::1", 50052),
        ("::1", "::1", 50051),
        ("[2001:DB8::1]", "2001:db8::1", 50051),
        ("[fe80::1%eth0]:50052", "fe80::1%eth0", 50052),
        ("fe80::1%eth0", "fe80::1%eth0", 50051),
    ],
)
def test_an_address_is_a_host_and_a_port(text, host, port):
    assert split_address(text) == (host, port)
    assert split_address(join_address(host, port)) == (host, port)


def test_an_ipv6_address_gets_its_brackets_once():
    assert join_address("::1", 1) == join_address("[::1]", 1) == "[::1]:1"
    assert join_address("192.0.2.7", 1) == "192.0.2.7:1"


@pytest.mark.parametrize(
    "text",
    ["https://fl.example.org", "fl.example.org:50051", "10.0.0.256", "[fl.example.org]", "[192.0.2.7]", "::g", ""],
)
def test_what_is_no_host_is_refused(text):
    with pytest.raises(AddressError, match="is neither a host name nor an IP address"):
        check_host(text)


@pytest.mark.parametrize("text", ["localhost:", "localhost:0", "localhost:65536", "localhost:http", "[::1]:x"])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(AddressError, match="the port must be a number from 1 to 65535"):
        split_address(text)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "director.localhost", "127.0.0.1", "127.1.2.3", "::1", "::1%lo", "::ffff:127.0.0.1",
     "::", "0.0.0.0", socket.gethostname()],
)  # fmt: skip
def test_this_machine_has_no_proxy(monkeypatch, host):
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    assert is_this_machine(host)
    assert proxy_of(host) is None


@pytest.mark.parametrize("host", ["fl.example.org", "localhost.example.org", "10.0.0.1", "2001:db8::1", "fe80::1%eth0"])
def test_another_machine_has_one_and_its_password_is_not_told(monkeypatch, host):
    monkeypatch.setenv("https_proxy", "http://ada:secret@proxy.example.org:3128")
    assert proxy_of(host) == "the proxy proxy.example.org:3128 (https_proxy)"
    assert route_to(join_address(host, 1)) == (
        f"{join_address(host, 1)} through the proxy proxy.example.org:3128 (https_proxy)"
    )


def test_the_variable_that_grpc_prefers_is_named(monkeypatch):
    for name in reversed(PROXY_VARIABLES):
        monkeypatch.setenv(name, f"{name}.example.org:3128")
        assert proxy_of("fl.example.org") == f"the proxy {name}.example.org:3128 ({name})"


@pytest.mark.parametrize(
    ("exempt", "host"),
    [("fl.example.org", "fl.example.org"), ("other, .example.org", "fl.example.org"),
     ("*.example.org", "fl.example.org"), ("*", "fl.example.org"), ("10.0.0.0/8", "10.1.2.3"),
     ("2001:db8::/32", "2001:db8::1"), ("[2001:db8::1]", "2001:db8::1")],
)  # fmt: skip
def test_exempt_hosts_have_none(monkeypatch, exempt, host):
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", exempt)
    assert proxy_of(host) is None
    assert exempt == "*" or proxy_of("fl.example.net")


def test_a_host_may_be_exempt_in_capitals(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", "fl.example.org")
    assert proxy_of("fl.example.org") is None
    assert proxy_of("fl.example.net")
