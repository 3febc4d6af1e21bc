"""Sessions of the page in the browser: one-time tokens, and what a session may do, which is what its certificate may.

A token is given to somebody who has shown a certificate (or without TLS a name) over gRPC, and is good for one login.
Only digests of tokens and sessions are kept.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

TOKEN_SECONDS = 600.0
SESSION_SECONDS = 12 * 3600.0
# The oldest make room: somebody who asks for tokens all the time does not fill the memory.
MOST_KEPT = 1000


@dataclass(frozen=True)
class Session:
    """A person who is logged in, or may log in.

    Attributes:
        name: the person's name.
        certificate: the certificate (PEM) that the token was asked with, "" without TLS.
        ends: when it is over, in seconds of the clock.
    """

    name: str
    certificate: str
    ends: float


class Sessions:
    """The page's open invitations and sessions, in memory: with the director they end."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._invited: dict[str, Session] = {}
        self._open: dict[str, Session] = {}

    def invite(self, name: str, certificate: str) -> str:
        """Return a token with which the owner of `certificate` may log in once, within TOKEN_SECONDS."""
        return self._keep(self._invited, Session(name, certificate, self._clock() + TOKEN_SECONDS))

    def log_in(self, token: str) -> str | None:
        """Return the secret of a new session, None for a token that is unknown, used or too old."""
        invited = self._invited.pop(_digest(token), None)
        if invited is None or invited.ends < self._clock():
            return None
        return self._keep(self._open, Session(invited.name, invited.certificate, self._clock() + SESSION_SECONDS))

    def find(self, secret: str) -> Session | None:
        """Return the session with this secret, None if there is none, or none any more."""
        session = self._open.get(_digest(secret))
        return None if session is None or session.ends < self._clock() else session

    def log_out(self, secret: str) -> None:
        """End a session."""
        self._open.pop(_digest(secret), None)

    def _keep(self, kept: dict[str, Session], session: Session) -> str:
        for key in [key for key, each in kept.items() if each.ends < self._clock()]:
            del kept[key]
        while len(kept) >= MOST_KEPT:
            del kept[next(iter(kept))]
        secret = secrets.token_urlsafe(32)
        kept[_digest(secret)] = session
        return secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
