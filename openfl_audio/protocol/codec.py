"""Messages as bytes, and back: JSON whose faults are named."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Discriminator, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from openfl_audio.errors import WireError
from openfl_audio.protocol.messages import Accepted, Counted, Credit, Ended, LiveRound, RoundRecord, Waits

# Requests are names and numbers.
MAX_REQUEST_BYTES = 64 << 10

Kind = TypeVar("Kind", bound=BaseModel)
HistoryMessage = RoundRecord | LiveRound | Waits | Ended
UploadMessage = Credit | Counted | Accepted


def _told_by(*fields: str) -> Discriminator:
    """Tell messages apart by the first of these fields that they have; by the last one those that have none."""

    def tag(content: Any) -> str:
        present = content if isinstance(content, dict) else {}
        return next((field for field in fields if field in present), fields[-1])

    return Discriminator(tag)


_HISTORY: TypeAdapter[HistoryMessage] = TypeAdapter(
    Annotated[
        Annotated[Waits, Tag("waits")]
        | Annotated[LiveRound, Tag("live")]
        | Annotated[Ended, Tag("status")]
        | Annotated[RoundRecord, Tag("round")],
        _told_by("waits", "live", "status", "round"),
    ]
)
_UPLOAD: TypeAdapter[UploadMessage] = TypeAdapter(
    Annotated[
        Annotated[Credit, Tag("chunks")] | Annotated[Counted, Tag("counted")] | Annotated[Accepted, Tag("accepted")],
        _told_by("chunks", "counted", "accepted"),
    ]
)


def encode(message: dict[str, Any] | BaseModel) -> bytes:
    """Return a message as JSON."""
    if isinstance(message, BaseModel):
        return message.model_dump_json(by_alias=True).encode()
    return json.dumps(message).encode()


def decode(data: bytes, kind: type[Kind]) -> Kind:
    """Return a request of this kind. Raises WireError, naming the field, for bytes that are none."""
    if len(data) > MAX_REQUEST_BYTES:
        # A fault is described in hundreds of bytes, and a request could have one in every other byte.
        raise WireError(f"not a {kind.__name__}: {len(data)} bytes are more than {MAX_REQUEST_BYTES}")
    return decode_answer(data, kind)


def decode_answer(data: bytes, kind: type[Kind]) -> Kind:
    """Return an answer of this kind, of any size. Raises WireError, naming the field, for bytes that are none."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise WireError(f"not a {kind.__name__}: {describe_faults(error)}") from None


def decode_history(data: bytes) -> HistoryMessage:
    """Return a message of an experiment's history. Raises WireError, naming the field, for bytes that are none."""
    try:
        return _HISTORY.validate_json(data)
    except ValidationError as error:
        raise WireError(f"not a message of a history: {describe_faults(error)}") from None


def decode_upload(data: bytes) -> UploadMessage:
    """Return an answer to an upload. Raises WireError, naming the field, for bytes that are none."""
    try:
        return _UPLOAD.validate_json(data)
    except ValidationError as error:
        raise WireError(f"not an answer to an upload: {describe_faults(error)}") from None


def validate(content: Any, kind: type[Kind]) -> Kind:
    """Return metadata as a message of this kind. Raises WireError, naming the field, if it is none."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise WireError(f"not a {kind.__name__}: {describe_faults(error)}") from None


def describe_faults(error: ValidationError) -> str:
    """Describe all faults in one sentence. Values are cut short, as they may be anything."""
    return "; ".join(_describe(fault) for fault in error.errors()[:3])


def _describe(fault: ErrorDetails) -> str:
    if fault["type"] == "value_error" and not fault["loc"]:  # a sentence of ours about fields that do not go together
        return f"{fault['msg'].removeprefix('Value error, '):.200}"
    return f"{'.'.join(map(str, fault['loc'])) or 'content'} is {fault['input']!r:.80}: {fault['msg']:.200}"
