"""Authorization: who is calling, and how a call is refused."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from grpc import aio

from openfl_audio.director.sessions import Session, Sessions
from openfl_audio.errors import CertificateError, SessionEndedError
from openfl_audio.protocol.certificates import MONITOR, OPERATOR, USER, owner_of, role_of
from openfl_audio.protocol.page import SESSION

logger = logging.getLogger(__name__)

Context: TypeAlias = aio.ServicerContext
Method = TypeVar("Method", bound=Callable)

# The page's process, which has no certificate: it calls over a socket in a folder that only the director's user enters.
PAGE = "page"
CALLERS = {
    "envoy": "envoys",
    "user": "notebook users",
    "operator": "operators",
    "monitor": "monitors",
    PAGE: "the director's page",
}
# Roles that may read the state of experiments, and those that may end them.
READERS = (USER, OPERATOR, MONITOR)
STEERERS = (USER, OPERATOR)


@dataclass(frozen=True)
class Caller:
    """Somebody who makes a call that is none of an envoy: a user of notebooks, an operator or a monitor."""

    name: str
    role: str = USER

    def sees(self, owner: str) -> bool:
        """Tell whether the caller sees all of an experiment of `owner`. One whose owner is not known is everybody's."""
        return self.role != USER or owner in ("", self.name)

    def __str__(self) -> str:
        return f"{self.role} '{self.name}'"


def made_by(*roles: str) -> Callable[[Method], Method]:
    """Mark a method of a service as a call that certificates of these roles may make. Others are not served."""

    def mark(method: Method) -> Method:
        setattr(method, "roles", roles)  # noqa: B010
        return method

    return mark


def roles_of(method: Any) -> tuple[str, ...]:
    """Return the roles that may make a call; none if it is not served."""
    return getattr(method, "roles", ())


def check_role(certificate: bytes, roles: tuple[str, ...]) -> None:
    """Raise CertificateError unless a certificate (PEM) is one of these roles."""
    name, role = role_of(certificate)
    if role not in roles:
        *others, last = (CALLERS[role] for role in roles)
        callers = f"{', '.join(others)} and {last}" if others else last
        raise CertificateError(f"the certificate is that of {role} '{name}', this call is for {callers}")


async def refuse(context: Context, code: grpc.StatusCode, sentence: str) -> NoReturn:
    """End a call with one sentence, to the caller and to the log."""
    # It may quote what the caller sent: bytes that are no text, line breaks, or more than the kilobytes a header holds.
    sentence = " ".join(sentence[:2000].encode("utf-8", "replace").decode().splitlines())
    logger.warning("refused a call of %s: %s", context.peer(), sentence)
    await context.abort(code, sentence)
    raise RuntimeError("abort always raises")


class Gate:
    """Tells who is calling, and refuses callers without a right to call.

    With TLS the certificate names the caller, without it the caller's own word does. A call that the page makes for
    somebody counts as one with the certificate that this person logged in with.

    Attributes:
        sessions: those who are logged in to the page.
    """

    def __init__(self, tls: bool) -> None:
        self.tls = tls
        self.sessions = Sessions()

    @staticmethod
    def is_page(context: Context) -> bool:
        """Tell whether the page's process calls. gRPC names a peer on the network by its address."""
        return context.peer().startswith("unix:")

    def session(self, context: Context) -> Session | None:
        """Return the session that a call of the page is made for, None for other calls. Raises SessionEndedError."""
        if not self.is_page(context):
            return None
        session = self.sessions.find(header_of(context, SESSION))
        if session is None:
            raise SessionEndedError("nobody is logged in here, or not any more: openfl-audio page prints a new address")
        return session

    def end_session(self, context: Context) -> None:
        """Log out the person for whom the page makes a call."""
        self.sessions.log_out(header_of(context, SESSION))

    def check_caller(self, context: Context, roles: tuple[str, ...]) -> str:
        """Return the certificate (PEM) that a call is made with, "" where it needs none.

        Raises CertificateError unless one of `roles` may make it, and SessionEndedError.
        """
        if PAGE in roles:
            if not self.is_page(context):
                raise CertificateError(f"this call is for {CALLERS[PAGE]}")
            return ""
        certificate = self.certificate(context)
        if certificate:
            check_role(certificate.encode(), roles)
        return certificate

    async def envoy(self, context: Context, claimed: str) -> str:
        """Return the calling envoy's name; end the call if the certificate is not that envoy's."""
        if self.tls:
            name, _ = await self._owner(context, ("envoy",))
            if name != claimed:
                sentence = f"the certificate is that of envoy '{name}', the call is made as envoy '{claimed}'"
                await refuse(context, grpc.StatusCode.PERMISSION_DENIED, sentence)
        return claimed

    async def person(self, context: Context) -> Caller:
        """Return who calls; end the call if the certificate is an envoy's."""
        if not self.tls:
            session = self.session(context)
            return Caller(session.name if session else header_of(context, "client_id") or "anonymous")
        return Caller(*await self._owner(context, READERS))

    def certificate(self, context: Context) -> str:
        """Return the caller's certificate (PEM), "" without TLS. Raises SessionEndedError."""
        if (session := self.session(context)) is not None:
            return session.certificate
        certificates = context.auth_context().get("x509_pem_cert")
        return certificates[0].decode() if certificates else ""

    def expiry(self, context: Context) -> float | None:
        """Return when the caller's certificate expires, in seconds of the clock; None without TLS."""
        certificate = self.certificate(context)
        return owner_of(certificate.encode()).expires if certificate else None

    async def _owner(self, context: Context, roles: tuple[str, ...]) -> tuple[str, str]:
        certificate = self.certificate(context).encode()
        try:
            check_role(certificate, roles)
        except CertificateError as error:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(error))
        return role_of(certificate)


def header_of(context: Context, key: str) -> str:
    """Return a header of the call, or ""."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return str(value)
    return ""
