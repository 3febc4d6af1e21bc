"""Messages of the service `openfl_audio.Page`: between a person's command, the page's process and the director."""

import grpc

from openfl_audio.protocol.messages import Answer, Message

SERVICE = "openfl_audio.Page"
# The header that has the secret of a session, of calls that the page's process makes for somebody.
SESSION = "session"


class PageStub:
    """Client side of the service `openfl_audio.Page`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.invite = channel.unary_unary(f"/{SERVICE}/Invite")
        self.log_in = channel.unary_unary(f"/{SERVICE}/LogIn")
        self.log_out = channel.unary_unary(f"/{SERVICE}/LogOut")
        self.get_session = channel.unary_unary(f"/{SERVICE}/GetSession")
        self.get_totals = channel.unary_unary(f"/{SERVICE}/GetTotals")


class InvitationRequest(Message):
    """A person requests a token for the page."""


class Invitation(Answer):
    """The page's address, and a token for one login there within so many seconds."""

    address: str
    token: str
    seconds: float

    @property
    def login(self) -> str:
        """Return the address that logs in. Browsers keep what is behind a # from servers, logs and other sites."""
        return f"{self.address}/login#token={self.token}"


class LoginRequest(Message):
    """The page's process exchanges a person's token for a session."""

    token: str


class Login(Answer):
    """The secret of a new session; "" for a token that is unknown, used or too old."""

    session: str


class SessionRequest(Message):
    """The page's process requests whose session it is, or ends it."""


class SessionDetails(Answer):
    """The owner of a session, and which calls the owner's role may make.

    Attributes:
        ends: when the session is over, in seconds of the clock.
        calls: names of gRPC calls that steer experiments.
        version: the version of the director.
    """

    name: str
    role: str
    ends: float
    calls: list[str]
    version: str


class TotalsRequest(Message):
    """The page's process requests what is to be monitored."""


class FederationTotals(Answer):
    """Numbers of a director for its monitoring: what there is now, and sums since it started.

    Attributes:
        envoys: how many envoys are "online" and "offline".
        experiments: how many experiments there are, by status.
        waiting: how many of them wait for something.
        rounds: rounds that were closed.
        seconds: how long they were open, together.
        updates: how many updates were "counted", "refused" and "missing".
        bytes_up: bytes that envoys have sent.
        bytes_down: bytes that envoys have received.
        certificate_expires: when the first of the envoys' certificates expires, in seconds of the clock; None without
            TLS.
    """

    envoys: dict[str, int]
    experiments: dict[str, int]
    waiting: int
    rounds: int
    seconds: float
    updates: dict[str, int]
    bytes_up: int
    bytes_down: int
    certificate_expires: float | None = None


class PageOrder(Answer):
    """The director tells the page's process what to serve, as its argument.

    Attributes:
        director: the director's local socket.
        listener: number of the open file that is the page's port.
        certificate: file of the certificate that browsers are shown, "" without TLS.
        key: file of its key.
    """

    director: str
    listener: int
    certificate: str = ""
    key: str = ""
