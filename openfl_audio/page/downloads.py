"""Downloads: models as safetensors files, and the history as CSV."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from openfl_audio.page.link import DirectorRefusal
from openfl_audio.page.logins import person_of
from openfl_audio.page.tables import csv_lines, records_of
from openfl_audio.protocol.tensors import Header
from openfl_audio.training.history import Record, envoy_rows, table_row


async def history_csv(request: Request) -> Response:
    """Answer with a row a round."""
    return await _csv(request, "history", lambda record: [table_row(record)])


async def envoys_csv(request: Request) -> Response:
    """Answer with a row for each envoy and round."""
    return await _csv(request, "envoys", envoy_rows)


async def _csv(request: Request, kind: str, rows_of: Callable[[Record], Iterable[dict[str, Any]]]) -> Response:
    person, name = person_of(request), request.path_params["name"]
    columns: dict[str, None] = {}
    async for record in records_of(person.history(name, 0)):
        columns |= dict.fromkeys(key for row in rows_of(record) for key in row)
    lines = csv_lines(records_of(person.history(name, 0)), list(columns), rows_of)
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=_attachment(f"{name}-{kind}.csv"))


async def model(request: Request) -> Response:
    """Answer with a model as a safetensors file, chunk by chunk as the director sends it."""
    name, which = request.path_params["name"], request.path_params["which"]
    chunks = person_of(request).model(name, which)
    packed = await anext(chunks, b"")
    if not packed:
        raise DirectorRefusal(404, f"experiment '{name}' has no {which} model yet")
    header = Header.unpack(packed).with_metadata({"experiment": name, "model": which})
    encoded = header.encode()

    async def content() -> AsyncIterator[bytes]:
        yield encoded
        async for chunk in chunks:
            yield chunk

    length = {"Content-Length": str(len(encoded) + header.data_bytes)}
    headers = _attachment(f"{name}-{which}.safetensors") | length
    return StreamingResponse(content(), media_type="application/octet-stream", headers=headers)


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
