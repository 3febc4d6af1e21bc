"""The service `openfl_audio.Page`: logins to the page, and the numbers that it gives for monitoring."""

from collections import Counter
from collections.abc import Callable
from importlib.metadata import version

import grpc

from openfl_audio.director.authorization import PAGE, READERS, Context, Gate, made_by, refuse, roles_of
from openfl_audio.director.director import Director
from openfl_audio.director.run_folder import Status
from openfl_audio.director.services.rounds import RoundsService, parse
from openfl_audio.director.sessions import TOKEN_SECONDS
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.messages import Accepted
from openfl_audio.protocol.page import (
    SERVICE,
    FederationTotals,
    Invitation,
    InvitationRequest,
    Login,
    LoginRequest,
    SessionDetails,
    SessionRequest,
    TotalsRequest,
)

STEERING = {
    "StopExperiment": RoundsService.stop_experiment,
    "ResumeExperiment": RoundsService.resume_experiment,
    "DeleteExperiment": RoundsService.delete_experiment,
    "DropEnvoy": RoundsService.drop_envoy,
    "GetModel": RoundsService.get_model,
    "GetLog": RoundsService.get_log,
}


class PageService:
    """The service of the page, with the messages of `openfl_audio.protocol.page`."""

    def __init__(self, director: Director, gate: Gate, address: Callable[[], str]) -> None:
        """Serve `director`; `address` is that of the page, "" where there is none."""
        self._director, self._gate, self._address = director, gate, address

    def handler(self) -> grpc.GenericRpcHandler:
        """Return gRPC's handler of the calls."""
        calls = {
            "Invite": self.invite,
            "LogIn": self.log_in,
            "LogOut": self.log_out,
            "GetSession": self.get_session,
            "GetTotals": self.get_totals,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    @made_by(*READERS)
    async def invite(self, request: bytes, context: Context) -> bytes:
        """Answer a person with an Invitation to the page."""
        await parse(context, request, InvitationRequest)
        if not self._address():
            sentence = "this director serves no page: its log says why, or it was started with --no-page"
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, sentence)
        name = (await self._gate.person(context)).name
        token = self._gate.sessions.invite(name, self._gate.certificate(context))
        return encode(Invitation(address=self._address(), token=token, seconds=TOKEN_SECONDS))

    @made_by(PAGE)
    async def log_in(self, request: bytes, context: Context) -> bytes:
        """Exchange a token for a session. Answers with a Login."""
        message = await parse(context, request, LoginRequest)
        return encode(Login(session=self._gate.sessions.log_in(message.token) or ""))

    @made_by(*READERS)
    async def log_out(self, request: bytes, context: Context) -> bytes:
        """End the session of the call. Answers with Accepted."""
        await parse(context, request, SessionRequest)
        self._gate.end_session(context)
        return encode(Accepted())

    @made_by(*READERS)
    async def get_session(self, request: bytes, context: Context) -> bytes:
        """Answer with the SessionDetails of the call's session."""
        await parse(context, request, SessionRequest)
        caller = await self._gate.person(context)
        session = self._gate.session(context)
        ends = session.ends if session is not None else 0.0
        calls = [name for name, method in STEERING.items() if caller.role in roles_of(method)]
        details = SessionDetails(
            name=caller.name, role=caller.role, ends=ends, calls=calls, version=version("openfl-audio")
        )
        return encode(details)

    @made_by(PAGE)
    async def get_totals(self, request: bytes, context: Context) -> bytes:
        """Answer with the FederationTotals."""
        await parse(context, request, TotalsRequest)
        director, totals = self._director, self._director.totals
        online = sum(map(director.is_online, director.envoys))
        states = Counter(each.state.status.value for each in director.experiments.values())
        states[Status.FAILED.value] += len(director.unusable)
        expiries = [each.certificate_expires for each in director.envoys.values() if each.certificate_expires]
        answer = FederationTotals(
            envoys={"online": online, "offline": len(director.envoys) - online},
            experiments={status.value: states[status.value] for status in Status},
            waiting=sum(bool(each.waits) for each in director.experiments.values() if not each.ended),
            rounds=totals.rounds,
            seconds=totals.seconds,
            updates={"counted": totals.counted, "refused": totals.refused, "missing": totals.missing},
            bytes_up=totals.bytes_up,
            bytes_down=totals.bytes_down,
            certificate_expires=min(expiries, default=None),
        )
        return encode(answer)
