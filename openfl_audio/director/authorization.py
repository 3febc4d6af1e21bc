"""Who is calling, and how a call is refused."""

import logging
from typing import NoReturn, TypeAlias

import grpc
from grpc import aio

from openfl_audio.errors import CertificateError
from openfl_audio.protocol.certificates import role_of

logger = logging.getLogger(__name__)

Context: TypeAlias = aio.ServicerContext


async def refuse(context: Context, code: grpc.StatusCode, sentence: str) -> NoReturn:
    """End a call with one sentence, to the caller and to the log."""
    # It may quote what somebody sent: text that is none, line breaks, or more than the kilobytes that a header holds.
    sentence = " ".join(sentence[:2000].encode("utf-8", "replace").decode().splitlines())
    logger.warning("refused a call of %s: %s", context.peer(), sentence)
    await context.abort(code, sentence)
    raise RuntimeError("abort always raises")


class Gate:
    """Who is calling, and may they? With TLS the certificate says so, without it everybody is who they say."""

    def __init__(self, tls: bool) -> None:
        self.tls = tls

    async def envoy(self, context: Context, claimed: str) -> str:
        """The calling envoy's name; ends the call if the certificate is not that envoy's."""
        if self.tls:
            name, role = await self._certificate(context)
            if role != "envoy" or name != claimed:
                sentence = f"the certificate is that of {role} '{name}', the call is made as envoy '{claimed}'"
                await refuse(context, grpc.StatusCode.PERMISSION_DENIED, sentence)
        return claimed

    async def any_envoy(self, context: Context) -> None:
        """Ends the call if the certificate is not an envoy's."""
        if self.tls:
            name, role = await self._certificate(context)
            if role != "envoy":
                sentence = f"the certificate is that of {role} '{name}', this call is for envoys"
                await refuse(context, grpc.StatusCode.PERMISSION_DENIED, sentence)

    async def user(self, context: Context) -> str:
        """The calling user's name; ends the call if the certificate is not a user's."""
        if not self.tls:
            return header_of(context, "client_id") or "anonymous"
        name, role = await self._certificate(context)
        if role != "user":
            sentence = f"the certificate is that of {role} '{name}', this call is for notebook users"
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, sentence)
        return name

    @staticmethod
    async def _certificate(context: Context) -> tuple[str, str]:
        try:
            return role_of(context.auth_context()["x509_pem_cert"][0])
        except CertificateError as error:
            return await refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(error))


def header_of(context: Context, key: str) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return str(value)
    return ""
