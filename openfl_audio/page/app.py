"""The page's requests: files that hold no data, and the interface of JSON and events that needs a session."""

import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from openfl_audio.page.curves import Histories
from openfl_audio.page.downloads import envoys_csv, history_csv, model
from openfl_audio.page.link import DirectorLink, DirectorRefusal
from openfl_audio.page.logins import Attempts, check_origin, cookie_of, person_of
from openfl_audio.page.metrics import exposition
from openfl_audio.page.security import SecurityHeaders
from openfl_audio.page.shown import round_of
from openfl_audio.page.streams import experiment_events, federation_events
from openfl_audio.page.tables import records_of

STATIC = Path(__file__).with_name("static")
SHELL_PATHS = ("/", "/experiments", "/experiments/{name}", "/login")
# Of the log of an envoy the end is shown.
LOG_BYTES = 64 << 10
# Whoever asks for the numbers more often gets the same ones again.
METRICS_SECONDS = 1.0


def create_app(link: DirectorLink, is_encrypted: bool, director_pid: int) -> Starlette:
    """Return the page of the director behind `link`, whose process is `director_pid`; with TLS it is encrypted."""
    reads = {
        "/healthz": healthz,
        "/metrics": metrics,
        "/api/session": session,
        "/api/federation": federation_events,
        "/api/experiments/{name}/events": experiment_events,
        "/api/experiments/{name}/rounds/{number:int}": one_round,
        "/api/experiments/{name}/logs/{envoy}": log,
        "/api/experiments/{name}/history.csv": history_csv,
        "/api/experiments/{name}/envoys.csv": envoys_csv,
        "/api/experiments/{name}/models/{which}": model,
    }
    changes = {
        "/api/login": log_in,
        "/api/logout": log_out,
        "/api/experiments/{name}/stop": steer,
        "/api/experiments/{name}/resume": steer,
        "/api/experiments/{name}/delete": steer,
        "/api/experiments/{name}/envoys/{envoy}/drop": steer,
    }
    app = Starlette(
        routes=[
            *(Route(path, shell) for path in SHELL_PATHS),
            *(Route(path, endpoint) for path, endpoint in reads.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in changes.items()),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={DirectorRefusal: _refused, HTTPException: _failed},
    )
    app.add_middleware(SecurityHeaders)
    app.state.link, app.state.histories, app.state.attempts = link, Histories(), Attempts()
    app.state.is_encrypted, app.state.director_pid = is_encrypted, director_pid
    app.state.metrics = 0.0, b""
    return app


async def shell(request: Request) -> Response:
    """Answer with the page itself, which has no data: whoever may open it sees no more than the login."""
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


async def healthz(request: Request) -> Response:
    """Answer whether page and director are there."""
    await request.app.state.link.totals()
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Answer with the numbers for Prometheus."""
    state = request.app.state
    taken, content = state.metrics
    if time.monotonic() - taken > METRICS_SECONDS:
        content = exposition(await state.link.totals(), state.director_pid)
        state.metrics = time.monotonic(), content
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


async def log_in(request: Request) -> Response:
    """Exchange a token for a session, which is in a cookie that no script reads and no other site has sent."""
    check_origin(request)
    attempts: Attempts = request.app.state.attempts
    address = request.client.host if request.client else ""
    if wait_s := attempts.seconds_to_wait(address):
        sentence = f"too many logins that failed: try again in {wait_s:.0f} s"
        raise HTTPException(429, sentence, headers={"Retry-After": f"{wait_s:.0f}"})
    token = (await _content(request)).get("token")
    secret = await request.app.state.link.log_in(token) if isinstance(token, str) else ""
    if not secret:
        attempts.note_failure(address)
        raise HTTPException(401, "this token is unknown, used or too old: openfl-audio page prints a new one")
    response = JSONResponse({})
    response.set_cookie(
        cookie_of(request), secret, httponly=True, samesite="strict", secure=request.app.state.is_encrypted, path="/"
    )
    return response


async def log_out(request: Request) -> Response:
    """End the session."""
    check_origin(request)
    await person_of(request).log_out()
    response = JSONResponse({})
    response.delete_cookie(cookie_of(request), path="/")
    return response


async def session(request: Request) -> Response:
    """Answer who is logged in."""
    found = await person_of(request).session()
    return JSONResponse({"name": found.name, "role": found.role, "ends": found.ends, "version": found.version})


async def steer(request: Request) -> Response:
    """Stop, resume or delete an experiment, or drop one of its envoys: the last part of the path says which."""
    check_origin(request)
    person, words = person_of(request), request.path_params
    action = request.url.path.rpartition("/")[2]
    await getattr(person, action)(words["name"], *([words["envoy"]] if "envoy" in words else []))
    return JSONResponse({})


async def one_round(request: Request) -> Response:
    """Answer with one round of an experiment: its envoys, and what did not count."""
    name, number = request.path_params["name"], request.path_params["number"]
    async for record in records_of(person_of(request).history(name, number)):
        return JSONResponse(round_of(record))
    raise HTTPException(404, f"experiment '{name}' has no round {number} that is over")


async def log(request: Request) -> Response:
    """Answer with the end of what the tasks of an envoy printed."""
    end = b""
    async for chunk in person_of(request).log(request.path_params["name"], request.path_params["envoy"]):
        end = (end + chunk)[-LOG_BYTES:]
    return JSONResponse({"text": end.decode("utf-8", "replace")})


async def _content(request: Request) -> dict[str, object]:
    try:
        content = await request.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise HTTPException(400, "the content of the request is no JSON object")
    return content


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, DirectorRefusal) else 500
    return JSONResponse({"error": str(error)}, status)


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
