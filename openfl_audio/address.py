"""Addresses at which a director is reached: host and port as one address, and the proxy in between.

Imports only the standard library: certificates are made where nothing else is installed.
"""

import ipaddress
import os
import re
import socket
from urllib.parse import urlsplit

from openfl_audio.errors import AddressError

DEFAULT_PORT = 50051
# In this order gRPC looks for its proxy; it knows no ALL_PROXY and no capital letters.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
# A host that is exempted in capitals is meant to be, although gRPC does not read them.
EXEMPTION_VARIABLES = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


def check_host(text: str) -> str:
    """Return a host name in small letters, or an IP address without brackets ("fe80::1%eth0" keeps its zone).

    Raises AddressError for anything else, such as a URL or a host with a port.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    address = ip_address(bare)
    if address and (bare == text or address.version == 6):
        return str(address)
    name = text.lower()
    # A last part of digits only is an address with a slip, such as 10.0.0.256, and never a host name.
    if not _NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise AddressError(f"{text!r} is neither a host name nor an IP address; give it without scheme and port")
    return name


def join_address(host: str, port: int) -> str:
    """Return "HOST:PORT", with brackets around an IPv6 address."""
    return f"{bracket(host)}:{port}"


def bracket(host: str) -> str:
    """Return the host as it stands before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of "HOST:PORT" or "HOST"; IPv6 addresses may stand in brackets.

    Raises AddressError.
    """
    if ip_address(text) or text.endswith("]"):
        return check_host(text), DEFAULT_PORT
    host, colon, port = text.rpartition(":")
    if not colon:
        return check_host(text), DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise AddressError(f"{text!r} is no HOST:PORT: the port must be a number from 1 to 65535")
    return check_host(host), int(port)


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` is, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_this_machine(host: str) -> bool:
    """Tell whether `host` is this machine by its loopback: an address, localhost, or this machine's own name."""
    address = ip_address(host)
    if address:
        mapped = getattr(address, "ipv4_mapped", None) or address
        return mapped.is_loopback or mapped.is_unspecified
    name = host.lower()
    return name in (*LOCAL_NAMES, socket.gethostname().lower()) or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Tell whether a server on `host` is reached from this machine only."""
    address = ip_address(host)
    return address.is_loopback if address else host.lower() in LOCAL_NAMES


def proxy_of(host: str) -> str | None:
    """Describe the proxy through which gRPC reaches `host` by this process's environment, without its password."""
    for variable in PROXY_VARIABLES:
        if value := os.environ.get(variable):
            break
    else:
        return None
    if is_this_machine(host) or _is_exempt(host):
        return None
    url = urlsplit(value if "://" in value else f"//{value}")
    return f"the proxy {url.netloc.rpartition('@')[2]} ({variable})"


def route_to(address: str) -> str:
    """Return the address, with the proxy in between if there is one: for messages."""
    proxy = proxy_of(split_address(address)[0])
    return f"{address} through {proxy}" if proxy else address


def _is_exempt(host: str) -> bool:
    # As gRPC reads it, entries are ends of names, or networks; other programs also know "*" and "*.example.org".
    value = next((os.environ[name] for name in EXEMPTION_VARIABLES if os.environ.get(name)), "")
    return any(_matches(host, entry.strip()) for entry in value.split(",") if entry.strip())


def _matches(host: str, entry: str) -> bool:
    entry = entry.strip("[]").removeprefix("*")
    address = ip_address(host)
    try:
        if address and address in ipaddress.ip_network(entry, strict=False):
            return True
    except ValueError:
        pass  # the entry is no network, but the end of a name
    return host.lower().endswith(entry.lower())
