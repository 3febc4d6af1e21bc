"""Channel to the director that goes over to a renewed certificate as soon as its files change.

It also ends when the director's certificate is revoked: gRPC does not check that.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from openfl_audio.address import split_address
from openfl_audio.errors import CertificateError
from openfl_audio.protocol.certificates import DIRECTOR, Credentials, describe_end, load_credentials, serial_of
from openfl_audio.protocol.revocation import REVOKED, RevocationList, Revoked
from openfl_audio.protocol.wire import channel_credentials, open_channel, presented_certificate

logger = logging.getLogger(__name__)

# Between two looks at the list of what is revoked.
LOOK_SECONDS = 1.0


class DirectorRevokedError(grpc.RpcError):
    """A call was not made, as the director's certificate is revoked."""

    def code(self) -> grpc.StatusCode:
        """Return a code after which the call is repeated: the director may get another certificate."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """Return what happened, as gRPC's errors do."""
        return str(self)


class RenewedChannel(grpc.Channel):
    """A channel whose calls go over a connection with the certificate that is in the files when they are made.

    Calls that are under way stay where they are. Files that cannot be used, such as half of a renewal, are reported,
    and the certificate of before is used further.
    """

    def __init__(self, address: str, folder: Path | None, name: str, **headers: str) -> None:
        """Open a channel for `name`, with its files in `folder`. Raises CertificateError if they cannot be used."""
        self._address, self._folder, self._name, self._headers = address, folder, name, headers
        self._credentials = load_credentials(folder, name)
        self._stamp = self._stamp_of_files()
        self._channel = self._open(self._credentials)
        self._before: grpc.Channel | None = None
        self._revoked = RevocationList(folder / REVOKED if folder else None)
        self._refused = ""
        self._closed = threading.Event()
        self._look()
        threading.Thread(target=self._watch, daemon=True, name="revocation").start()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        """End all calls if the certificate that the director shows is revoked; let them be made again if it is not."""
        revoked = self._revoked.current()
        refused = ""
        if any(entry.name == DIRECTOR for entry in revoked.values()):
            host, port = split_address(self._address)
            try:
                serial = serial_of(presented_certificate(host, port, self._credentials.root))
            except (OSError, ValueError):
                return  # it is away, and what was found before holds
            if serial in revoked:
                refused = f"the certificate of the director, serial {serial:x}, is revoked"
        if refused and not self._refused:
            logger.error("%s: all calls end, and none is made until it shows another one", refused)
            self._refused = refused
            self._close_channels()
            self._before, self._channel = None, self._open(self._credentials)
        self._refused = refused

    def check(self) -> None:
        """Raise DirectorRevokedError if the director's certificate is revoked."""
        if self._refused:
            raise DirectorRevokedError(self._refused)

    @property
    def fault(self) -> str:
        """The reason why the director's certificate or that in the files cannot be used; "" if both can."""
        if self._refused:
            return f"{self._refused}; it has to get another one."
        try:
            load_credentials(self._folder, self._name)
        except CertificateError as error:
            return f"{error} Put a renewed one in its place: this process takes it up."
        return ""

    @property
    def credentials(self) -> Credentials:
        """The certificate that is used now, its key and its authorities."""
        return self._credentials

    @property
    def revoked(self) -> Mapping[int, Revoked]:
        """The certificates that are revoked, by serial number."""
        return self._revoked.current()

    @property
    def root(self) -> bytes:
        """The certificates of the authorities (PEM)."""
        return self._credentials.root

    def current(self) -> grpc.Channel:
        """Return the channel with the certificate that is in the files now."""
        stamp = self._stamp_of_files()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                credentials = load_credentials(self._folder, self._name)
            except CertificateError as error:
                logger.warning("%s The certificate of before is used further.", error)
            else:
                if credentials != self._credentials:
                    logger.info("the renewed certificate of '%s' is used from now on", self._name)
                    self._replace(credentials)
        return self._channel

    def _replace(self, credentials: Credentials) -> None:
        # Calls may still be under way on the channel of before, and hardly on the one before that.
        if self._before:
            self._before.close()
        self._before, self._channel, self._credentials = self._channel, self._open(credentials), credentials

    def _open(self, credentials: Credentials) -> grpc.Channel:
        if sentence := describe_end(credentials):
            logger.warning(sentence)
        return open_channel(self._address, channel_credentials(credentials), **self._headers)

    def _stamp_of_files(self) -> tuple[tuple[int, int, int], ...]:
        folder = self._folder or Path()
        paths = [folder / name for name in ("ca.crt", f"{self._name}.crt", f"{self._name}.key")]
        states = [path.stat() for path in paths if path.exists()]
        return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)

    def subscribe(self, callback: Callable, try_to_connect: bool | None = False) -> None:
        """Tell `callback` of the states of today's connection."""
        self.current().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable) -> None:
        """End what `subscribe` began."""
        for channel in filter(None, (self._channel, self._before)):
            channel.unsubscribe(callback)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """Return a call as of a grpc.Channel."""
        return _Call(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """Return a call as of a grpc.Channel."""
        return _Call(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """Return a call as of a grpc.Channel."""
        return _Call(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """Return a call as of a grpc.Channel."""
        return _Call(self, "stream_stream", arguments, options)

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._close_channels()

    def _close_channels(self) -> None:
        for channel in filter(None, (self._channel, self._before)):
            channel.close()

    def __enter__(self) -> "RenewedChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Call:
    """A call that is made on the channel of the moment."""

    def __init__(self, channel: RenewedChannel, kind: str, arguments: tuple, options: dict[str, Any]) -> None:
        self._channel, self._kind, self._arguments, self._options = channel, kind, arguments, options

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._channel.check()
        return getattr(self._channel.current(), self._kind)(*self._arguments, **self._options)(*arguments, **options)


def fault_of(channel: grpc.Channel) -> str:
    """Return why this side's certificate cannot be used; "" if it can, and without TLS."""
    return channel.fault if isinstance(channel, RenewedChannel) else ""
