"""The director's server: its settings, its port, and its end."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import grpc
from grpc import aio
from openfl.protocols import aggregator_pb2_grpc, director_pb2_grpc
from pydantic import Field

from openfl_audio.address import DEFAULT_PORT, is_loopback, join_address
from openfl_audio.config import Host, Retention, Settings
from openfl_audio.director.authorization import Gate
from openfl_audio.director.calls import LOOK_SECONDS, OpenCalls
from openfl_audio.director.director import Director
from openfl_audio.director.grpc_errors import GuardingInterceptor
from openfl_audio.director.page import PageProcess, PageSettings
from openfl_audio.director.receiving import Connections, end_silent_lines
from openfl_audio.director.runs_lock import sole_director
from openfl_audio.director.services.aggregator import AggregatorService
from openfl_audio.director.services.director import DirectorService
from openfl_audio.director.services.page import PageService
from openfl_audio.director.services.rounds import RoundsService
from openfl_audio.errors import CertificateError, RecordError, StartError
from openfl_audio.process import prepare_process, share_one_heap
from openfl_audio.protocol.certificates import Credentials, Owner, describe_end, load_credentials, owner_of
from openfl_audio.protocol.codec import MAX_REQUEST_BYTES
from openfl_audio.protocol.privacy import refuse_test_noise
from openfl_audio.protocol.revocation import REVOKED, RevocationList
from openfl_audio.protocol.tensors import MAX_HEADER_BYTES
from openfl_audio.protocol.wire import CHANNEL_OPTIONS

logger = logging.getLogger("director")

# The largest message that a client sends is the header of a model; OpenFL's envoys send chunks of two megabytes.
MAX_RECEIVED_BYTES = MAX_HEADER_BYTES + MAX_REQUEST_BYTES
# A client that does not finish its handshake is disconnected. TLS takes a few round trips, on a busy machine seconds.
HANDSHAKE_SECONDS = 10.0
DAY_SECONDS = 86_400.0
# Connections may be this share of the files that a process may open, so that experiments can write theirs.
CONNECTIONS_SHARE = 0.75


def max_connections(max_files: int) -> int:
    """Return how many connections a process may have that may open `max_files`."""
    return int(max_files * CONNECTIONS_SHARE)


def server_options(max_files: int) -> list[tuple[str, int]]:
    """Return gRPC's options for a server whose process may open `max_files`."""
    return [
        *(option for option in CHANNEL_OPTIONS if option[0] != "grpc.max_receive_message_length"),
        ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
        ("grpc.max_allowed_incoming_connections", max_connections(max_files)),
    ]


class DirectorSettings(Settings):
    """The `settings` of a director's YAML file."""

    listen_host: Host = Field(
        default="localhost",
        description="host name or address to listen on; 0.0.0.0, or :: with IPv6, is everybody in the network",
    )
    listen_port: int = Field(default=DEFAULT_PORT, ge=1, le=65_535, description="the one port of the federation")
    envoy_health_check_period: int = Field(
        default=5,
        ge=1,
        description="seconds between two signs of life of an envoy, which is offline after two without any",
    )
    certificates: Path | None = Field(
        default=None, description="folder with ca.crt, director.crt and director.key; only TLS needs it"
    )
    runs: Path = Field(description="folder of the experiments: a folder each, with history and models")
    retention: Retention = Field(default=Retention(), description="experiments that have ended and are kept")
    page: PageSettings = Field(default=PageSettings(), description="the page in the browser")


class DirectorFile(Settings):
    """The content of a director's YAML file."""

    settings: DirectorSettings = Field(description="settings of the director")


async def serve(
    settings: DirectorSettings, credentials: Credentials | None, max_files: int, page: PageProcess | None = None
) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError if the port or the folder of experiments cannot be had."""
    stopped = interruption()
    revoked = RevocationList(settings.certificates / REVOKED if settings.certificates and credentials else None)
    # Calls come when there is a director.
    calls, connections = (
        OpenCalls(revoked, lambda event, **fields: director.record.note(event, **fields)),
        Connections(),
    )
    gate = Gate(tls=credentials is not None)
    guard = GuardingInterceptor(gate, calls, connections, settings.runs)
    server = aio.server(options=server_options(max_files), interceptors=[guard])
    # Both before the folder is touched: a director that was started by mistake must not resume experiments.
    own = RenewedCredentials(settings.certificates, credentials, calls.note_renewal)
    address = bind(server, settings, own)
    if page is not None:
        page.bind(server)
    with sole_director(settings.runs):
        director = Director(settings.runs, settings.envoy_health_check_period)
        about = settings.model_dump(mode="json", exclude={"certificates", "runs", "page"})
        director.record.append("director_started", version=version("openfl-audio"), tls=gate.tls, settings=about)
        await director.recover()
        director_pb2_grpc.add_DirectorServicer_to_server(DirectorService(director, gate), server)
        aggregator_pb2_grpc.add_AggregatorServicer_to_server(AggregatorService(director, gate), server)
        server.add_generic_rpc_handlers((RoundsService(director, gate, lambda: own.current).handler(),))
        page_service = PageService(director, gate, lambda: page.address if page else "")
        server.add_generic_rpc_handlers((page_service.handler(),))
        await server.start()
        how = "with TLS" if credentials else "without TLS: any client may connect"
        logger.info("director listens on %s %s", address, how)
        silent = end_silent_lines(max_connections(max_files))
        watches = [calls.watch(), connections.watch(), silent, director.retain(settings.retention)]
        watches += [stop_revoked(director, revoked), keep_record(director)]
        if page is not None:
            watches.append(page.serve())
        if credentials:
            watches.append(warn_of_end(settings.certificates, credentials))
        watching = [asyncio.create_task(watch) for watch in watches]
        await stopped.wait()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        logger.info("director stops")
        await server.stop(grace=1)
        director.heads.keep_waiting(at_once=True)
        director.record.note("director_ended")
        with contextlib.suppress(OSError):  # said as a warning by then
            director.record.sync()


async def keep_record(director: Director) -> None:
    """Write heads that wait, and bring to the disk what was noted in the record besides rounds, for ever."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            await asyncio.to_thread(director.heads.keep_waiting)
            await asyncio.to_thread(director.record.sync)
        except OSError as error:
            logger.warning("%s waits for the disk: %s", director.record.path, error)


async def warn_of_end(folder: Path | None, credentials: Credentials) -> None:
    """Say every day that the director's certificate ends soon, if it does, for ever."""
    while True:
        with contextlib.suppress(CertificateError):  # a renewal that cannot be used is reported by the server
            credentials = load_credentials(folder, credentials.name)
        if sentence := describe_end(credentials):
            logger.warning(sentence)
        await asyncio.sleep(DAY_SECONDS)


async def stop_revoked(director: Director, revoked: RevocationList) -> None:
    """Stop the experiments of those whose certificate is revoked with that wish, for ever."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for entry in revoked.current().values():
            for experiment in list(director.experiments.values()):
                if not experiment.ended and entry.stops(experiment.state.owner, experiment.state.submitted):
                    logger.warning("experiment '%s': its owner's certificate is revoked", experiment.plan.name)
                    experiment.note("stopped", by="the revocation of its owner's certificate")
                    experiment.stop()


def bind(server: aio.Server, settings: DirectorSettings, own: "RenewedCredentials") -> str:
    """Let `server` listen, and return its address. Raises OSError."""
    address = join_address(settings.listen_host, settings.listen_port)
    try:
        if own.current is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, own.of_server())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is another director running there?") from error
    return address


def interruption() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set."""
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    return stopped


class RenewedCredentials:
    """Certificate and key of the director, None without TLS; those in its folder take their place when files change.

    Attributes:
        current: those that new connections are made with.
    """

    def __init__(
        self, folder: Path | None, credentials: Credentials | None, on_renewal: Callable[[Owner], None]
    ) -> None:
        self._folder, self.current, self._on_renewal = folder, credentials, on_renewal

    def of_server(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials of a server that takes clients of the same authority only."""
        if self.current is None:
            raise CertificateError("There are no certificates, as TLS is off.")
        configuration = _configuration(self.current)
        return grpc.dynamic_ssl_server_credentials(configuration, self._renew, require_client_authentication=True)

    def _renew(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what new connections are to be made with from now on, None for what they are made with already."""
        try:
            found = load_credentials(self._folder, self.current.name if self.current else "")
        except CertificateError as error:
            logger.warning("%s The certificate of before is used further.", error)
            return None
        if found == self.current:
            return None
        logger.info("new connections are made with the renewed certificate of the director")
        self.current = found
        self._on_renewal(owner_of(found.certificate))
        return _configuration(found)


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credentials.private_key, credentials.certificate)], root_certificates=credentials.root
    )


def run(settings: DirectorSettings, tls: bool, with_page: bool = True) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises CertificateError, SettingsError, StartError without port or folder, and PrivacyError if noise repeats here
    and others than this machine can come.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if not is_loopback(settings.listen_host):
        refuse_test_noise(f"the director listens on {settings.listen_host}, for other machines")
    max_files = prepare_process()
    share_one_heap()
    credentials = load_credentials(settings.certificates, "director") if tls else None
    page = PageProcess(settings.page, settings.certificates if credentials else None) if with_page else None
    try:
        asyncio.run(serve(settings, credentials, max_files, page))
    except (OSError, RecordError) as error:
        reason = str(error)
    else:
        return
    finally:
        if page is not None:
            page.close()
    # The error's traceback held the server. Freed as late as with the interpreter, gRPC's server waits for a thread of
    # its own that no longer runs: in one start of twenty for ever.
    gc.collect()
    raise StartError(reason)
