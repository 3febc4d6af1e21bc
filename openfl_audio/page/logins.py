"""Logins to the page: the session's cookie, requests of other sites, and how often a token may be tried."""

import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from openfl_audio.page.link import Person

# So many failures of one address in so many seconds.
MOST_FAILURES, FAILURES_SECONDS = 10, 60.0
MOST_ADDRESSES = 1000


class Attempts:
    """Logins that failed, by address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    def note_failure(self, address: str) -> None:
        """Note that a login from `address` failed."""
        while len(self._failures) >= MOST_ADDRESSES and address not in self._failures:
            del self._failures[next(iter(self._failures))]
        self._failures.setdefault(address, deque(maxlen=MOST_FAILURES)).append(self._clock())

    def seconds_to_wait(self, address: str) -> float:
        """Return after how many seconds `address` may try again, 0 for now."""
        failures = self._failures.get(address, deque())
        if len(failures) < MOST_FAILURES:
            return 0.0
        return max(0.0, failures[0] + FAILURES_SECONDS - self._clock())


def cookie_of(request: Request) -> str:
    """Return the name of the session's cookie: browsers have one jar for all ports of a host."""
    return f"openfl-audio-{request.url.port or request.url.scheme}"


def person_of(request: Request) -> Person:
    """Return who makes the request; whether the session is good, the director says. Raises HTTPException."""
    secret = request.cookies.get(cookie_of(request))
    if not secret:
        raise HTTPException(401, "nobody is logged in here: openfl-audio page prints an address that logs in")
    return Person(request.app.state.link, secret)


def check_origin(request: Request) -> None:
    """Refuse a request that changes something and is none of this page's own.

    Browsers send the origin of whatever makes a POST, and other sites cannot make one of JSON.
    """
    is_own = urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host", "-")
    if not is_own or request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(403, "the request does not come from this page")
