"""The page in the browser, as the director sees it: its settings, its port, and the process that serves it.

The page has a process of its own, so that no number of open pages takes time from the director's event loop. It calls
the director over a local socket: with TLS on it could have no certificate that is good for everybody who logs in, and
here each call counts as one with the certificate of the person whom it is made for (`Gate.session`).
"""

import asyncio
import contextlib
import ipaddress
import logging
import shutil
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from grpc import aio
from pydantic import Field

from openfl_audio.address import bracket, is_loopback
from openfl_audio.config import Host, Settings
from openfl_audio.errors import SettingsError
from openfl_audio.protocol.certificates import DIRECTOR, pair_paths
from openfl_audio.protocol.page import PageOrder

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8050
# What a director does without that was installed for envoys only.
NEEDED = ("prometheus_client", "starlette", "uvicorn")
# One that cannot live is not started anew all the time.
RESTART_SECONDS = 5.0
STOP_SECONDS = 5.0


class PageSettings(Settings):
    """The `page` of a director's settings."""

    host: Host = Field(default="127.0.0.1", description="where the page is served; other hosts than loopback need TLS")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65_535, description="port of the page; 0 takes one that is free")
    certificate: Path | None = Field(
        default=None, description="certificate (PEM) that browsers are shown; on other hosts the director's by default"
    )
    key: Path | None = Field(default=None, description="key (PEM) of that certificate")


class PageProcess:
    """The process that serves the page, which is started again if it ends.

    Attributes:
        address: where browsers find the page, "" where it is not served.
    """

    def __init__(self, settings: PageSettings, certificates: Path | None) -> None:
        """Take the page's port; `certificates` is the director's folder of them, None without TLS.

        A port that is taken is no reason for a federation not to run: then there is no page, and a warning says so.
        Raises SettingsError for a host that needs TLS where there is none.
        """
        self._certificate, self._key = pair_of(settings, certificates)
        self.address = ""
        self._folder = Path(tempfile.mkdtemp(prefix="openfl-audio-"))
        self._listener: socket.socket | None = None
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            logger.warning("no page is served: it needs %s (pip install)", ", ".join(missing))
            return
        try:
            self._listener = listen(settings.host, settings.port)
        except OSError as error:
            logger.warning("no page is served: %s:%d: %s", settings.host, settings.port, error.strerror or error)
            return
        scheme = "https" if self._certificate else "http"
        self.address = f"{scheme}://{bracket(reachable(settings.host))}:{self._listener.getsockname()[1]}"

    def bind(self, server: aio.Server) -> None:
        """Let the director's server listen on the page's socket as well, in a folder that no other user enters."""
        server.add_insecure_port(f"unix:{self._socket}")

    @property
    def _socket(self) -> Path:
        return self._folder / "director"

    async def serve(self) -> None:
        """Keep the page's process running, for ever."""
        if self._listener is None:
            return
        order = PageOrder(
            director=str(self._socket),
            listener=self._listener.fileno(),
            certificate=str(self._certificate or ""),
            key=str(self._key or ""),
        )
        logger.info("the page is at %s; openfl-audio page prints an address that logs in", self.address)
        while True:
            # It ends when its standard input does, which is when the director ends, however that comes about.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "openfl_audio.page", order.model_dump_json()),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[order.listener],
                start_new_session=True,
            )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _end(process)
                raise
            logger.warning("the page's process ended with status %d, and is started again", code)
            await asyncio.sleep(RESTART_SECONDS)

    def close(self) -> None:
        """Give the port and the folder of the socket back."""
        if self._listener is not None:
            self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()


def pair_of(settings: PageSettings, certificates: Path | None) -> tuple[Path | None, Path | None]:
    """Return the files of the page's certificate and key, None for a page without TLS. Raises SettingsError."""
    if (settings.certificate is None) != (settings.key is None):
        raise SettingsError("settings.page: give both certificate and key, or neither")
    if settings.certificate is not None or is_loopback(settings.host):
        return settings.certificate, settings.key
    if certificates is None:
        raise SettingsError(
            f"settings.page.host is {settings.host}: without TLS the page is for this machine only (127.0.0.1); give "
            "settings.page.certificate and settings.page.key, or --no-page"
        )
    return pair_paths(certificates, DIRECTOR)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port of `host`. Raises OSError."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=100)


def reachable(host: str) -> str:
    """Return a host under which a browser finds a page that is served on `host`."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return socket.getfqdn()
    return host
