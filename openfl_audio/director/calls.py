"""Open calls: whose they are, how many, and how one is ended from elsewhere."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from types import TracebackType

from openfl_audio.errors import CallEndedError, TooManyCallsError
from openfl_audio.protocol.certificates import Owner
from openfl_audio.protocol.revocation import RevocationList

# A notebook has a handful of calls open, an envoy and its worker too.
MAX_CALLS_PER_CERTIFICATE = 64
LOOK_SECONDS = 1.0
TRANSFERS_OF_A_KIND = 2


class Endable:
    """A block of a task that another task may end: CallEndedError is raised in it."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._reason: str | None = None

    def end(self, reason: str) -> None:
        """End the block. A block that has been ended already keeps its first reason."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    def __enter__(self) -> "Endable":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reason is not None and isinstance(error, asyncio.CancelledError):
            if self._task is not None and hasattr(self._task, "uncancel"):  # from Python 3.11 on
                self._task.uncancel()
            raise CallEndedError(self._reason) from None


class Transfers:
    """The open transfers of an experiment: one of each kind by each peer, and one more beside it.

    The connection of the first one may have broken unnoticed. A third one ends the first: a peer that never ends its
    transfers would hold files that are not needed any more.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], list[Endable]] = {}

    @contextmanager
    def open(self, kind: str, peer: str) -> Iterator[None]:
        """Run a block that is a transfer. Raises CallEndedError when it is ended from elsewhere."""
        others = self._open.setdefault((kind, peer), [])
        if len(others) == TRANSFERS_OF_A_KIND:
            others.pop(0).end(f"another {kind} of {peer} takes its place")
        with Endable() as transfer:
            others.append(transfer)
            try:
                yield
            finally:
                if transfer in others:
                    others.remove(transfer)

    def end_all(self, peers: Container[str], reason: str) -> None:
        """End all transfers of `peers`."""
        for (_, peer), transfers in list(self._open.items()):
            if peer in peers:
                for transfer in list(transfers):
                    transfer.end(reason)


class OpenCalls:
    """Counter of open calls by certificate, which ends those whose certificate expires or is revoked."""

    def __init__(self, revoked: RevocationList, note: Callable[..., None] = lambda event, **fields: None) -> None:
        """Count calls, and end those of `revoked` certificates; `note` is told once of what happens to each."""
        self._revoked, self._note = revoked, note
        self._noted: set[tuple[str, int]] = set()
        self._serials: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._open: dict[Endable, Owner] = {}

    @contextmanager
    def open(self, owner: Owner) -> Iterator[None]:
        """Run a block that is one call of `owner`.

        Raises TooManyCallsError at once, and CallEndedError when the certificate has expired or is revoked.
        """
        if ended := self._ended(owner):
            raise CallEndedError(ended)
        name = owner.name
        if self._serials.get(name) != owner.serial:
            self._tell("certificate_renewed" if name in self._serials else "certificate_registered", owner)
            self._serials[name] = owner.serial
        if self._counts[name] >= MAX_CALLS_PER_CERTIFICATE:
            raise TooManyCallsError(f"{name} has {MAX_CALLS_PER_CERTIFICATE} calls open, as many as it may")
        self._counts[name] += 1
        try:
            with Endable() as call:
                self._open[call] = owner
                try:
                    yield
                finally:
                    del self._open[call]
        finally:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]

    def note_renewal(self, owner: Owner) -> None:
        """Note that a certificate is used from now on that no call shows: the director's own."""
        self._tell("certificate_renewed", owner)

    async def watch(self) -> None:
        """End calls whose certificate has ended, for ever. The clock is read: it may be set, and machines sleep."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for call, owner in list(self._open.items()):
                if ended := self._ended(owner):
                    call.end(ended)

    def _ended(self, owner: Owner) -> str:
        """Return why the certificate counts no more, or "" if it does."""
        if owner.serial in self._revoked.current():
            self._tell("certificate_revoked", owner)
            return f"the certificate of {owner.name} is revoked"
        if time.time() > owner.expires:
            self._tell("certificate_expired", owner)
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(owner.expires))
            return f"the certificate of {owner.name} expired on {when}"
        return ""

    def _tell(self, event: str, owner: Owner) -> None:
        if (event, owner.serial) not in self._noted:
            self._noted.add((event, owner.serial))
            expires = datetime.fromtimestamp(owner.expires, timezone.utc).isoformat()
            self._note(event, of=owner.name, serial=f"{owner.serial:x}", expires=expires)
