"""The page's process: its end with the director's, and a certificate that is read again when it changes."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
from pathlib import Path

import uvicorn

from openfl_audio.page.app import create_app
from openfl_audio.page.link import DirectorLink
from openfl_audio.protocol.page import PageOrder

logger = logging.getLogger("page")

# The director goes first where the processors are busy.
NICENESS = 5
CERTIFICATE_LOOK_SECONDS = 60.0
# Requests at a time; beyond them a browser is told to come back.
MOST_REQUESTS = 300


def run(order: PageOrder) -> None:
    """Serve until the director ends or asks for it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s page: %(message)s")
    with contextlib.suppress(OSError):  # some sandboxes let nobody do so
        os.nice(NICENESS)
    asyncio.run(_serve(order))


async def _serve(order: PageOrder) -> None:
    link = DirectorLink(order.director)
    config = uvicorn.Config(
        create_app(link, is_encrypted=bool(order.certificate), director_pid=os.getppid()),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        ssl_certfile=order.certificate or None,
        ssl_keyfile=order.key or None,
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = uvicorn.Server(config)
    watches = [asyncio.create_task(_end_with_director(server)), asyncio.create_task(_renew(config))]
    try:
        await server.serve(sockets=[socket.socket(fileno=order.listener)])
    finally:
        for watch in watches:
            watch.cancel()
        await link.close()


async def _end_with_director(server: uvicorn.Server) -> None:
    """Let the server end when standard input does, which the director holds open as long as it lives."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with contextlib.suppress(OSError):
        await reader.read()
    server.should_exit = True


async def _renew(config: uvicorn.Config) -> None:
    """Use a renewed certificate for new connections, for ever."""
    if config.ssl_certfile is None:
        return
    paths = [Path(config.ssl_certfile), Path(str(config.ssl_keyfile))]
    seen = _stamps(paths)
    while True:
        await asyncio.sleep(CERTIFICATE_LOOK_SECONDS)
        if (now := _stamps(paths)) != seen and config.ssl is not None:
            try:
                config.ssl.load_cert_chain(paths[0], paths[1])
            except (OSError, ssl.SSLError) as error:
                logger.warning("%s cannot be used: %s; the certificate of before is used further", paths[0], error)
            else:
                seen = now
                logger.info("new connections are made with the renewed certificate %s", paths[0])


def _stamps(paths: list[Path]) -> list[tuple[int, int]]:
    with contextlib.suppress(OSError):
        return [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
    return []
