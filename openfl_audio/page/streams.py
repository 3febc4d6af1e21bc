"""Server-sent events: what a browser shows, as it changes.

Each stream asks the director once a second, as `openfl-audio watch` does, and sends what is new. A session that ends,
or an experiment that somebody deletes, is so seen in the second in which that happens.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from openfl_audio.page import shown
from openfl_audio.page.curves import Curves, Histories
from openfl_audio.page.link import UNAVAILABLE, DirectorRefusal, Person
from openfl_audio.page.logins import person_of
from openfl_audio.protocol.page import SessionDetails

POLL_SECONDS = 1.0
Event = tuple[str, Any]


async def federation_events(request: Request) -> Response:
    """Answer with the federation whenever it changes."""
    person, sent = person_of(request), ""

    async def look() -> AsyncIterator[Event]:
        nonlocal sent
        content = shown.federation(await person.status())
        before, sent = sent, json.dumps(content)
        if sent != before:
            yield "federation", content

    return await _stream(look)


async def experiment_events(request: Request) -> Response:
    """Answer with an experiment whenever it changes, and with its rounds as they come."""
    person = person_of(request)
    watched = _Watched(person, await person.session(), request.app.state.histories, request.path_params["name"])
    return await _stream(watched.look)


class _Watched:
    """One browser's view of an experiment: what it has been sent."""

    def __init__(self, person: Person, session: SessionDetails, histories: Histories, name: str) -> None:
        self._person, self._session, self._histories, self._name = person, session, histories, name
        self._state = ""
        self._curves: Curves | None = None
        self._sent = 0, 0, 0  # rounds, rounds with values of envoys, and the stride of these

    async def look(self) -> AsyncIterator[Event]:
        """Yield what is new, the state first: a long history takes a moment. Raises DirectorRefusal."""
        entry = await self._person.experiment(self._name)
        state = shown.details(entry, self._session)
        if (text := json.dumps(state)) != self._state:
            self._state = text
            yield "experiment", state
        curves = await self._histories.of(entry, lambda first: self._person.history(self._name, first))
        before, now = self._sent, (len(curves), len(curves.envoy_rounds), curves.stride)
        if curves is not self._curves or now[2] != before[2]:
            yield "rounds", curves.since(0, 0)
        elif now != before:
            yield "rounds", curves.since(before[0], before[1])
        self._curves, self._sent = curves, now


async def _stream(look: Callable[[], AsyncIterator[Event]]) -> Response:
    """Answer with the events that `look` yields, for as long as the browser stays; before the first it may refuse."""
    events = look()
    first = await anext(events)

    async def stream() -> AsyncIterator[str]:
        yield _text(*first)
        looking = events
        while True:
            try:
                async for event in looking:
                    yield _text(*event)
                yield ":\n\n"  # a browser that is gone is noticed by writing to it
            except DirectorRefusal as error:
                if error.status != UNAVAILABLE:
                    yield _text("end", {"status": error.status, "error": str(error)})
                    return
                yield _text("trouble", str(error))
            await asyncio.sleep(POLL_SECONDS)
            looking = look()

    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


def _text(name: str, content: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
